//! The text syntax of LVM2's metadata: `name = value` and `name { … }`.
//!
//! A hand-written parser with hard bounds on depth and on the number of nodes, so that hostile text
//! costs no more than a small multiple of its length.

use crate::error::{Error, Result};

/// Sections within sections (LVM itself uses four).
const MAX_DEPTH: usize = 16;
/// Values and sections in one text. A volume group with 10,000 segments has some 200,000.
const MAX_NODES: usize = 4_000_000;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer.
    Number(i64),
    /// A string (or a number with a fraction, which the format does not use for anything we read).
    Text(String),
    /// A list of numbers and strings.
    List(Vec<Value>),
}

/// A section: its values and its sections, each in the order of the text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    /// `name = value`.
    pub values: Vec<(String, Value)>,
    /// `name { … }`.
    pub sections: Vec<(String, Section)>,
}

impl Section {
    /// The first section of that name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, section)| section)
    }

    /// The first value of that name.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.values
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// A string.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A list; a single value counts as a list of one.
    pub fn list(&self, name: &str) -> &[Value] {
        match self.value(name) {
            Some(Value::List(list)) => list,
            Some(single) => std::slice::from_ref(single),
            None => &[],
        }
    }

    /// Whether a list of strings has this one.
    pub fn has_flag(&self, list: &str, flag: &str) -> bool {
        self.list(list)
            .iter()
            .any(|value| matches!(value, Value::Text(text) if text == flag))
    }
}

/// Parses a text. Anything from the first NUL on is ignored.
///
/// # Errors
/// `Corrupt` with the byte offset at which the text stops making sense.
pub fn parse(text: &[u8]) -> Result<Section> {
    let text = match text.iter().position(|&byte| byte == 0) {
        Some(end) => &text[..end],
        None => text,
    };
    let mut parser = Parser {
        text,
        at: 0,
        nodes: 0,
    };
    let root = parser.section(0)?;
    Ok(root)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    nodes: usize,
}

impl Parser<'_> {
    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > MAX_DEPTH {
            return Err(self.error("sections are nested too deeply"));
        }
        let mut section = Section::default();
        loop {
            self.skip_blank();
            match self.peek() {
                None if depth == 0 => return Ok(section),
                None => return Err(self.error("the text ends within a section")),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                Some(_) => {}
            }
            self.count()?;
            let name = self.name()?;
            self.skip_blank();
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    section.sections.push((name, self.section(depth + 1)?));
                }
                Some(b'=') => {
                    self.at += 1;
                    section.values.push((name, self.value()?));
                }
                _ => return Err(self.error("expected = or {")),
            }
        }
    }

    fn value(&mut self) -> Result<Value> {
        self.skip_blank();
        if self.peek() != Some(b'[') {
            return self.scalar();
        }
        self.at += 1;
        let mut list = Vec::new();
        loop {
            self.skip_blank();
            match self.peek() {
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::List(list));
                }
                Some(b',') => self.at += 1,
                Some(_) => list.push(self.scalar()?),
                None => return Err(self.error("the text ends within a list")),
            }
        }
    }

    fn scalar(&mut self) -> Result<Value> {
        self.count()?;
        match self.peek() {
            Some(quote @ (b'"' | b'\'')) => {
                self.at += 1;
                self.string(quote)
            }
            _ => self.bare(),
        }
    }

    fn string(&mut self, quote: u8) -> Result<Value> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.error("the text ends within a string")),
                Some(byte) if byte == quote => {
                    self.at += 1;
                    return Ok(Value::Text(String::from_utf8_lossy(&out).into_owned()));
                }
                Some(b'\\') if quote == b'"' => {
                    self.at += 1;
                    match self.peek() {
                        Some(byte) => out.push(byte),
                        None => return Err(self.error("the text ends within a string")),
                    }
                    self.at += 1;
                }
                Some(byte) => {
                    out.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    fn bare(&mut self) -> Result<Value> {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.' | b'_'))
        {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        if word.is_empty() {
            return Err(self.error("expected a value"));
        }
        Ok(match word.parse() {
            Ok(number) => Value::Number(number),
            Err(_) => Value::Text(word),
        })
    }

    fn name(&mut self) -> Result<String> {
        if let Some(quote @ (b'"' | b'\'')) = self.peek() {
            self.at += 1;
            return match self.string(quote)? {
                Value::Text(text) => Ok(text),
                _ => Err(self.error("expected a name")),
            };
        }
        let start = self.at;
        while self.peek().is_some_and(|b| {
            !b.is_ascii_whitespace()
                && !matches!(b, b'=' | b'{' | b'}' | b'[' | b']' | b'#' | b'"' | b',')
        }) {
            self.at += 1;
        }
        if start == self.at {
            return Err(self.error("expected a name"));
        }
        Ok(String::from_utf8_lossy(&self.text[start..self.at]).into_owned())
    }

    fn skip_blank(&mut self) {
        loop {
            match self.peek() {
                Some(b'#') => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                Some(byte) if byte.is_ascii_whitespace() => self.at += 1,
                _ => return,
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn count(&mut self) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.error("too many values"));
        }
        Ok(())
    }

    fn error(&self, message: &str) -> Error {
        Error::corrupt(format!(
            "volume group metadata: {message} (byte {} of the text)",
            self.at
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_text_parses_into_sections_and_values() {
        let text = br#"
            # a comment { = [
            vg-0 {
                id = "a-b"
                seqno = 3
                status = ["READ", "WRITE"]
                flags = []
                logical_volumes {
                    root { segment1 { stripes = [ "pv0", 0 ] weird = "a \"b\" \\ c" } }
                }
            }
            contents = "Text Format Volume Group"
        "#;
        let root = parse(text).unwrap();
        assert_eq!(root.text("contents"), Some("Text Format Volume Group"));
        let vg = root.section("vg-0").unwrap();
        assert_eq!(vg.number("seqno"), Some(3));
        assert!(vg.has_flag("status", "WRITE"));
        assert!(vg.list("flags").is_empty());
        let segment = vg
            .section("logical_volumes")
            .and_then(|s| s.section("root"))
            .and_then(|s| s.section("segment1"))
            .unwrap();
        assert_eq!(
            segment.list("stripes"),
            [Value::Text("pv0".into()), Value::Number(0)]
        );
        assert_eq!(segment.text("weird"), Some("a \"b\" \\ c"));
    }

    #[test]
    fn broken_text_is_an_error_and_never_a_panic() {
        for text in [
            "a",
            "a {",
            "a = [1, 2",
            "a = \"x",
            "a = }",
            "} ",
            "=",
            "a = \"x\\",
            "a ] b",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse("a {".repeat(1000).as_bytes()).is_err());
        assert_eq!(parse(b"").unwrap(), Section::default());
        assert_eq!(parse(b"a = 1\0garbage = ").unwrap().number("a"), Some(1));
    }
}
