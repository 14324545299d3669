//! JSON pruned while it is parsed: only the fields that a schema names are kept.
//!
//! XO's metadata carries whole XAPI records; brfs needs a dozen fields of them. Pruning makes a
//! listing fast and keeps hostile input small: memory follows what is kept, not what is in the
//! file, and what is not kept is skipped without recursion. Types are never insisted on: a field of
//! an odd type is kept as the scalar it is, or becomes `null`.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

/// Longest string that is kept, in bytes; longer ones are cut.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Most members that a map with arbitrary keys may have. A VM has at most some 250 disks.
pub const MAX_RECORDS: usize = 4096;

/// What to keep of a value.
#[derive(Debug)]
pub enum Keep {
    /// A number, string or boolean; objects and lists become `null`.
    Scalar,
    /// These members of an object.
    Fields(&'static [(&'static str, Keep)]),
    /// All members of an object, each pruned alike.
    Each(&'static Keep),
}

/// Parses a whole document.
///
/// # Errors
/// When it is not JSON, has something after its end, or breaks [`MAX_RECORDS`].
pub fn parse(data: &[u8], keep: &Keep) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(data);
    let value = Pruned(keep).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// The seed that does the pruning; for use within streaming parsers.
pub struct Pruned<'k>(pub &'k Keep);

impl<'de> DeserializeSeed<'de> for Pruned<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pruned<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(cut(v, MAX_TEXT_BYTES).to_owned()))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        match self.0 {
            Keep::Scalar => {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(Value::Null);
            }
            Keep::Fields(fields) => {
                while let Some(key) = members.next_key::<String>()? {
                    match fields.iter().find(|(name, _)| *name == key) {
                        Some((_, keep)) => {
                            let value = members.next_value_seed(Pruned(keep))?;
                            kept.insert(key, value);
                        }
                        None => {
                            members.next_value::<IgnoredAny>()?;
                        }
                    }
                }
            }
            Keep::Each(keep) => {
                while let Some(key) = members.next_key::<String>()? {
                    if kept.len() >= MAX_RECORDS || key.len() > MAX_TEXT_BYTES {
                        return Err(A::Error::custom("more records than a VM can have"));
                    }
                    let value = members.next_value_seed(Pruned(keep))?;
                    kept.insert(key, value);
                }
            }
        }
        Ok(Value::Object(kept))
    }
}

/// The longest start of a text that has at most `max` bytes and ends between characters.
pub fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    static SCHEMA: Keep = Keep::Fields(&[
        ("a", Keep::Scalar),
        ("each", Keep::Each(&Keep::Fields(&[("x", Keep::Scalar)]))),
    ]);

    #[test]
    fn only_named_fields_are_kept() {
        let value = parse(
            br#"{"b":{"c":[1,2,{"d":[]}]},"a":1,"each":{"k":{"x":true,"y":2},"l":3,"m":[4]}}"#,
            &SCHEMA,
        )
        .unwrap();
        assert_eq!(
            value,
            serde_json::json!({"a":1,"each":{"k":{"x":true},"l":3,"m":null}})
        );
    }

    #[test]
    fn deep_nesting_in_skipped_parts_does_no_harm() {
        let depth = 200_000;
        let text = format!(
            "{{\"b\":{}{},\"a\":1}}",
            "[".repeat(depth),
            "]".repeat(depth)
        );
        assert_eq!(parse(text.as_bytes(), &SCHEMA).unwrap()["a"], 1);
        let text = format!("{{\"a\":{}", "[".repeat(depth));
        assert!(parse(text.as_bytes(), &SCHEMA).is_err());
    }

    #[test]
    fn long_texts_are_cut_between_characters_and_long_maps_refused() {
        let text = format!("{{\"a\":\"x{}\"}}", "é".repeat(MAX_TEXT_BYTES));
        let value = parse(text.as_bytes(), &SCHEMA).unwrap();
        assert_eq!(value["a"].as_str().unwrap().len(), MAX_TEXT_BYTES - 1);
        let many: Vec<String> = (0..=MAX_RECORDS).map(|i| format!("\"{i}\":0")).collect();
        let text = format!("{{\"each\":{{{}}}}}", many.join(","));
        assert!(parse(text.as_bytes(), &SCHEMA).is_err());
    }
}
