//! Paths into a record, as a connector's file writes them: `vitals.spo2`, `$.header["sent at"]`, `beds[*].readings`.

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Member(String),
    /// Place in a list, from 0.
    Place(usize),
    /// Every element of a list, or every member of an object.
    Each,
}

/// A path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    /// It begins at the whole record (`$`).
    pub is_rooted: bool,
    pub steps: Vec<Step>,
}

impl Path {
    /// Reads `$` (the record) or `@` (the element, which may be left out) and the steps `.name`, `["name"]`, `[3]`, `[*]`.
    ///
    /// # Errors
    /// A sentence for whoever wrote the path.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fault = |what: &str| format!("`{text}` is not a path: {what}");
        let (is_rooted, mut rest) = match text.strip_prefix('$') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('@').unwrap_or(text)),
        };
        if text.is_empty() {
            return Err(fault("it is empty"));
        }
        let mut steps = Vec::new();
        let mut is_first = rest.len() == text.len();
        while !rest.is_empty() {
            let (step, behind) = if let Some(behind) = rest.strip_prefix("[*]") {
                (Step::Each, behind)
            } else if let Some(quoted) = rest.strip_prefix("[\"") {
                let (name, behind) = quoted.split_once("\"]").ok_or_else(|| fault("a name in [\" has no end \"]"))?;
                (Step::Member(name.to_owned()), behind)
            } else if let Some(place) = rest.strip_prefix('[') {
                let (place, behind) = place.split_once(']').ok_or_else(|| fault("a `[` has no `]`"))?;
                let place = place.parse().map_err(|_| fault("in [ ] stands a place from 0, a name in quotes or *"))?;
                (Step::Place(place), behind)
            } else {
                let name = match rest.strip_prefix('.') {
                    Some(name) => name,
                    None if is_first => rest,
                    None => return Err(fault("a name needs a `.` before it")),
                };
                let end = name.find(['.', '[']).unwrap_or(name.len());
                if end == 0 {
                    return Err(fault("a name is empty"));
                }
                (Step::Member(name[..end].to_owned()), &name[end..])
            };
            steps.push(step);
            (rest, is_first) = (behind, false);
        }
        Ok(Self { is_rooted, steps })
    }

    pub fn has_each(&self) -> bool {
        self.steps.contains(&Step::Each)
    }
}

/// A path with one more step, for people.
pub(super) fn print_step(path: &mut String, step: &Step) {
    match step {
        Step::Member(name) => {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        }
        Step::Place(place) => path.push_str(&format!("[{place}]")),
        Step::Each => path.push_str("[*]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn printed(text: &str) -> Result<String, String> {
        let path = Path::parse(text)?;
        let mut printed = String::new();
        path.steps.iter().for_each(|step| print_step(&mut printed, step));
        Ok(format!("{}{printed}", if path.is_rooted { "$" } else { "" }))
    }

    #[test]
    fn paths_are_read_step_by_step() {
        for (text, expected) in [
            ("a.b", "a.b"),
            ("@", ""),
            ("@.a", "a"),
            ("$", "$"),
            ("$.a[\"b.c d\"][0]", "$a.b.c d[0]"),
            ("beds[*].readings[*]", "beds[*].readings[*]"),
            ("[*].x", "[*].x"),
            ("Sp O2 (%)", "Sp O2 (%)"),
        ] {
            assert_eq!(printed(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["", "a..b", "a[", "a[x]", "a[\"b]", "$a", "a[0]b", "."] {
            assert!(printed(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_a_path_never_panics(text in "[$@.\\[\\]\"*a-z0-9 ]{0,20}") {
            let _ = Path::parse(&text);
        }
    }
}
