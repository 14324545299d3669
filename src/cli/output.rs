//! What the commands print: tables for people, JSON for scripts, and nothing that a terminal obeys.

use std::fmt::Write as _;
use std::io::{self, Write};

use unicode_width::UnicodeWidthStr as _;

use crate::repo::naming;

/// A text from storage, made safe for a terminal: control characters, line separators and
/// bidirectional overrides become escapes such as `\u{1b}`.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '/' && naming::is_unsafe(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A name as it is, or in quotes where it could be taken for something else: for an escape, for a
/// path, for nothing.
pub fn show_name(name: &str) -> String {
    let is_odd = name.trim() != name
        || matches!(name, "" | "." | ".." | "-")
        || name.contains('\\')
        || escape(name) != name;
    if is_odd {
        format!("{name:?}")
    } else {
        name.to_owned()
    }
}

/// Bytes with a unit of 1024: `512 B`, `1.5 GiB`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Widest a column is made for the sake of its cells: a longer one shifts the rest of its own row.
const MAX_COLUMN: usize = 48;

/// Rows under headings; columns as wide as their widest cell on a terminal, numbers to the right.
pub struct Table {
    headings: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; those that start with `>` are of columns aligned to the right.
    pub fn new(headings: &[&'static str]) -> Self {
        let right = headings.iter().map(|h| h.starts_with('>')).collect();
        let headings = headings.iter().map(|h| h.trim_start_matches('>')).collect();
        Table {
            headings,
            right,
            rows: Vec::new(),
        }
    }

    /// Adds a row. Cells are escaped; empty ones become `-`.
    pub fn row(&mut self, cells: Vec<String>) {
        let shown = |cell: String| match cell.is_empty() {
            true => "-".to_owned(),
            false => escape(&cell),
        };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Prints headings and rows.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let headings: Vec<String> = self.headings.iter().map(|h| (*h).to_owned()).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&headings]);
            let widths = cells.map(|row| row.get(column).map_or(0, |cell| cell.width()));
            widths.max().unwrap_or(0).min(MAX_COLUMN)
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        for row in [&headings].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let pad = " ".repeat(width.saturating_sub(cell.width()));
                let _ = match right {
                    true => write!(line, "{pad}{cell}  "),
                    false => write!(line, "{cell}{pad}  "),
                };
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Prints a value as one JSON document.
pub fn print_json(out: &mut dyn Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Runs a command that writes to standard output. A reader that stops reading (`| head`) is no
/// error.
///
/// # Errors
/// What the command says, and failures to write.
pub fn to_stdout<T>(command: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>) -> anyhow::Result<T>
where
    T: Default,
{
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = command(&mut out).and_then(|value| {
        out.flush()?;
        Ok(value)
    });
    match result {
        Err(e) if is_closed_pipe(&e) => Ok(T::default()),
        result => result,
    }
}

fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// An error with what led to it, each reason once: some of ours repeat their source in their own
/// sentence.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for reason in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = reason;
        } else if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn reasons_are_told_once() {
        use super::told;
        use anyhow::Context;
        let io = || std::io::Error::from_raw_os_error(2);
        let ours = crate::error::Error::from_io(io(), "/nowhere");
        let error = Err::<(), _>(ours).context("cannot mount").unwrap_err();
        let once = "cannot mount: /nowhere: No such file or directory (os error 2)";
        assert_eq!(told(&error), once);
        let error = Err::<(), _>(io()).context("/nowhere").unwrap_err();
        assert_eq!(told(&error), &once["cannot mount: ".len()..]);
    }

    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (201_326_592, "192.0 MiB"),
            (64 << 40, "64.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(
            escape("a\u{1b}[2Jb\n\u{202e}c/d é"),
            "a\\u{1b}[2Jb\\n\\u{202e}c/d é"
        );
    }

    #[test]
    fn odd_names_are_told_from_what_they_look_like() {
        for plain in ["web-01", "web-01 \"α\" / prod", "a.b", "..x"] {
            assert_eq!(show_name(plain), plain);
        }
        for (odd, shown) in [
            ("..", "\"..\""),
            ("", "\"\""),
            ("-", "\"-\""),
            (" a", "\" a\""),
            ("a\u{1b}", "\"a\\u{1b}\""),
            ("a\\u{1b}", "\"a\\\\u{1b}\""),
        ] {
            assert_eq!(show_name(odd), shown);
        }
    }

    #[test]
    fn one_long_cell_does_not_widen_all_rows() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["x".repeat(300), "long".into()]);
        table.row(vec!["short".into(), "ok".into()]);
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!("{}  long", "x".repeat(300)));
        assert_eq!(lines[2], format!("{:48}  ok", "short"));
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(vec!["é".into(), "10".into(), String::new()]);
        table.row(vec!["longer".into(), "9".into(), "x".into()]);
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "NAME    SIZE  STATE\né         10  -\nlonger     9  x\n"
        );
    }

    /// Two columns of a terminal for each of these characters; none for an accent of its own.
    #[test]
    fn columns_line_up_below_wide_characters() {
        let mut table = Table::new(&["NAME", ">SIZE"]);
        table.row(vec!["東京".into(), "10".into()]);
        table.row(vec!["e\u{301}".into(), "9".into()]);
        table.row(vec!["abc".into(), "8".into()]);
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "NAME  SIZE\n東京    10\ne\u{301}        9\nabc      8\n"
        );
    }
}
