//! The token of the API: from a file or the environment, compared in constant time, never shown.

use std::path::Path;

use anyhow::{Context, ensure};
use axum::http::{HeaderMap, header};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::config::Http;

/// A shorter one could be guessed.
const LENGTH_MIN: usize = 16;

/// The secret that opens the API.
pub struct Token(SecretString);

impl Token {
    /// # Errors
    /// It is too short, or cannot be sent in a header; the text is not quoted.
    pub fn new(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        ensure!(
            text.len() >= LENGTH_MIN && text.chars().all(|c| c.is_ascii_graphic()),
            "the token of [http] must have at least {LENGTH_MIN} characters, letters, digits and signs without spaces; make one with: openssl rand -hex 32"
        );
        Ok(Self(SecretString::from(text)))
    }

    /// The token the configuration names; `None` if it names none.
    ///
    /// # Errors
    /// It cannot be read or used.
    pub fn of(http: &Http) -> anyhow::Result<Option<Self>> {
        let text = match (&http.token_file, &http.token_env) {
            (Some(path), _) => SecretString::from(read(path)?),
            (None, Some(name)) => SecretString::from(std::env::var(name).ok().with_context(|| {
                format!("environment variable `{name}` of http.token_env is not set, or is no text")
            })?),
            (None, None) => return Ok(None),
        };
        Self::new(text.expose_secret()).map(Some)
    }

    /// Whether a request brings it. Digests are compared, so the time taken tells nothing about the token.
    pub(super) fn is_borne_by(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given =
            given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        given.is_some_and(|(_, given)| Sha256::digest(given.trim()) == Sha256::digest(self.0.expose_secret()))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!("the file of http.token_file, `{}`, cannot be read; check its path and rights", path.display())
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = Token::new(" 0123456789abcdef\n").expect("long enough");
        let borne = |value: &str| {
            let value = HeaderValue::from_str(value).expect("a header's value");
            token.is_borne_by(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]))
        };
        assert!(borne("Bearer 0123456789abcdef") && borne("bearer 0123456789abcdef"));
        for wrong in [
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
        ] {
            assert!(!borne(wrong), "{wrong}");
        }
        assert!(!token.is_borne_by(&HeaderMap::new()));
    }

    #[test]
    fn a_token_that_is_refused_is_not_quoted() {
        for text in ["", "too-short", "with spaces in between it"] {
            let error = Token::new(text).err().expect("refused").to_string();
            assert!(error.contains("openssl rand") && (text.is_empty() || !error.contains(text)), "{error}");
        }
    }

    #[test]
    fn the_token_comes_from_where_the_configuration_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").expect("written");
        let from = |token_file, token_env: Option<&str>| {
            let token_env = token_env.map(str::to_owned);
            Token::of(&Http { token_file, token_env, ..Http::default() })
        };
        assert!(from(None, None).expect("none is named").is_none());
        assert!(from(Some(path), None).expect("can be read").is_some());
        let missing = from(Some(folder.path().join("nothing")), None).err().expect("there is no file");
        assert!(missing.to_string().contains("http.token_file"), "{missing}");
        assert!(
            from(None, Some("WARDBELL_NO_SUCH_TOKEN")).err().is_some_and(|error| error.to_string().contains("not set"))
        );
    }
}
