//! TOML files with a place for every fault: keys that nothing reads, where a key stands, what of a file may be shown.

use std::ops::Range;

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use toml::de::{DeTable, DeValue};
use wardbell_rules::diagnostic::did_you_mean;
use wardbell_rules::{Diagnostic, SourceFile};

/// Keys of a table that nothing reads, each with the nearest one that is. `section` is the table as people call it.
pub(crate) fn unread_keys(
    code: &'static str,
    file: &SourceFile,
    table: &DeTable<'_>,
    known: &[&str],
    section: &str,
) -> Vec<Diagnostic> {
    let is_known = |key: &str| known.contains(&key);
    let unread = table.iter().filter(|(key, _)| !is_known(key.get_ref()));
    let fault = |key: &str, span: Range<usize>| {
        let help = did_you_mean(key, known.iter().copied())
            .unwrap_or_else(|| format!("known keys of {section}: {}", known.join(", ")));
        Diagnostic::error(code, file, span, format!("unknown key `{key}` in {section}"))
            .label("nothing reads this")
            .help(help)
    };
    unread.map(|(key, _)| fault(key.get_ref(), key.span())).collect()
}

/// Where a key stands; places in lists are written as numbers from 0.
pub(crate) fn span_of(table: &DeTable<'_>, path: &[&str]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let mut value = table.get(*first)?;
    for key in rest {
        value = match value.get_ref() {
            DeValue::Table(inner) => inner.get(*key)?,
            DeValue::Array(list) => list.get(key.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value.span())
}

/// A line whose value may be a secret. A key that names the place of one is no secret itself.
fn may_be_secret(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let key = line.split('=').next().unwrap_or_default().trim_end();
    let is_place = key.ends_with("_file") || key.ends_with("_env");
    !is_place && ["password", "secret", "token", "authorization", ".pem"].iter().any(|word| line.contains(word))
}

/// The text as it may be shown: what may be a secret is blotted out, and everything stays at its place.
pub(crate) fn without_secrets(text: &str) -> String {
    let blot = |c: char| if c.is_whitespace() { c.to_string() } else { "*".repeat(c.len_utf8()) };
    let shown = |line: &str| match line.split_once('=') {
        Some((key, value)) if may_be_secret(line) => {
            format!("{key}={}", value.chars().map(blot).collect::<String>())
        }
        _ => line.to_owned(),
    };
    text.split_inclusive('\n').map(shown).collect()
}

/// What a parser says of a place, unless that might quote a secret.
pub(crate) fn said_at<'a>(text: &str, at: &Range<usize>, message: &'a str) -> &'a str {
    let begin = text.get(..at.start).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    let line = text.get(begin..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    if may_be_secret(line) { "what stands here cannot be read, and is not shown" } else { message }
}

/// The names of a struct's fields, as serde knows them.
pub(crate) fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("only structs are asked"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("the names are known now"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(Names(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_blotted_out_in_place() {
        let text = "site = \"a\"\n\"sasl.password\" = \"sword fish\" # é\nsasl_password_file = \"p\"\n";
        let shown = "site = \"a\"\n\"sasl.password\" = ****** ***** * **\nsasl_password_file = \"p\"\n";
        assert_eq!(without_secrets(text), shown);
        assert_eq!(shown.len(), text.len(), "faults still point at their place");
    }

    #[test]
    fn a_message_about_a_secret_does_not_quote_it() {
        let text = "[kafka.options]\n\"sasl.password\" = 7531\n\"client.id\" = 8642\n";
        let said = |value: &str| said_at(text, &(text.find(value).expect("there")..text.len()), value).to_owned();
        assert!(!said("7531").contains("7531"));
        assert_eq!(said("8642"), "8642");
    }
}
