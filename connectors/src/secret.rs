//! Secrets: kept in a file or an environment variable, never in a configuration; once read, shown nowhere.

use std::path::PathBuf;

use secrecy::SecretString;
use secrecy::zeroize::Zeroize;

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    /// An environment variable, by name.
    Variable(String),
}

/// Why a secret cannot be read; never quotes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct SecretError {
    pub what: String,
    pub remedy: &'static str,
}

impl SecretSource {
    /// Reads the secret, without what blank space stands at its end.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        let mut text = match self {
            SecretSource::File(path) => std::fs::read_to_string(path).map_err(|error| SecretError {
                what: format!("`{}` cannot be read: {error}", path.display()),
                remedy: "name a file that the user who runs the job can read",
            })?,
            SecretSource::Variable(name) => std::env::var(name).map_err(|_| SecretError {
                what: format!("there is no environment variable {}", shown(name)),
                remedy: "set it in the environment of the job; its name is what belongs here",
            })?,
        };
        let is_empty = text.trim_end().is_empty();
        let secret = SecretString::from(text.trim_end());
        text.zeroize();
        if is_empty {
            return Err(SecretError { what: "is empty".to_owned(), remedy: "write the secret into it" });
        }
        Ok(secret)
    }
}

/// A name that does not look like one may be the secret itself, written in the wrong place.
fn shown(name: &str) -> String {
    let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    if is_name { format!("`{name}`") } else { "of the name that stands here".to_owned() }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_secret_is_read_whole_and_what_cannot_be_read_is_not_quoted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            SecretSource::File(path.clone()).read()
        };
        let secret = read(" with blanks \n").expect("a secret");
        assert_eq!(secret.expose_secret(), " with blanks");
        assert!(!format!("{secret:?}").contains("blanks"));
        assert_eq!(read("\n").expect_err("there is none").what, "is empty");
        let missing = SecretSource::File(folder.path().join("nothing")).read().expect_err("there is no file");
        assert!(missing.to_string().contains("nothing") && missing.to_string().contains("can read"), "{missing}");
        let unset = SecretSource::Variable("SECRET_TEST_NOT_SET".to_owned()).read().expect_err("it is not set");
        assert!(unset.what.contains("`SECRET_TEST_NOT_SET`"), "{unset}");
        let pasted = SecretSource::Variable("swordfish".to_owned()).read().expect_err("there is no such variable");
        assert!(!pasted.to_string().contains("swordfish"), "{pasted}");
    }
}
