//! Faults as a user sees them: a small file in, the rendered message out.

use super::*;

fn check(text: &str) -> String {
    let file = SourceFile { path: "rule.rhai".to_owned(), text: text.to_owned() };
    let (_, diagnostics) = compile(&file, Catalogue::builtin());
    diagnostics.iter().map(|diagnostic| diagnostic.render(&file.text, false)).collect::<Vec<_>>().join("\n")
}

const HEAD: &str =
    r#"const RULE = #{ id: "a", version: 1, owner: "o", priority: "high", limits: #{ low: 90.0, clear: 92.0 } };"#;

/// Checks a file made of [`HEAD`] and `body` for one expected code at `line:column`.
fn faults(body: &str) -> Vec<String> {
    let file = SourceFile { path: "rule.rhai".to_owned(), text: format!("{HEAD}\n{body}\n") };
    let (_, diagnostics) = compile(&file, Catalogue::builtin());
    diagnostics.iter().map(|d| format!("{} {}:{} {}", d.code, d.line, d.column, d.message)).collect()
}

#[test]
fn a_fault_is_shown_at_its_place_with_the_remedy() {
    let text = format!("{HEAD}\nfn raise(spo2_sat, limit) {{ spo2_sat.mean(\"30s\") < limit.low }}\n");
    assert_eq!(
        check(&text),
        "\
error[R014]: unknown signal `spo2_sat`
 --> rule.rhai:2:10
  |
2 | fn raise(spo2_sat, limit) { spo2_sat.mean(\"30s\") < limit.low }
  |          ^^^^^^^^ not in the signal catalogue
  |
  = help: did you mean `spo2`?"
    );
}

#[test]
fn every_fault_of_a_file_is_reported_at_once() {
    let body = "fn raise(spo2, limit) { spo2.mean(30) < limit.lwo || spo2.men(\"30s\") < 90.0 }\nfn clear(spo2) { if spo2.last > 92.0 { true } }";
    assert_eq!(
        faults(body),
        [
            "R026 2:35 a window is a text with its unit, not a number",
            "R024 2:47 unknown limit `lwo`",
            "R025 2:59 signals have no function `men`",
            "R023 3:18 `if` without `else`",
        ]
    );
}

#[test]
fn what_the_language_does_not_hold_is_named_with_its_place() {
    for (body, expected) in [
        ("fn raise(spo2) { while true { } }", "R020 2:18 a loop is not part of the rule language"),
        ("fn raise(spo2) { let x = 1; x = 2; x > 1 }", "R020 2:31 an assignment is not part of the rule language"),
        ("fn raise(spo2) { spo2.last }", "R021 2:4 `raise` gives a number, not a condition or a priority"),
        ("fn raise(spo2) { spo2 < 90.0 }", "R021 2:18 expected a number, found a signal"),
        ("fn raise(spo2) { help(spo2) }", "R025 2:18 unknown function `help` with 1 argument(s)"),
        (
            "fn raise(spo2) { again(spo2) }\nfn again(x) { again(x) }",
            "R030 3:15 `again` calls itself, or calls nest deeper than 16",
        ),
        ("fn raise(consciousness) { consciousness.last > 1.0 }", "R028 2:27 expected a number, found a category"),
        ("fn raise(consciousness) { consciousness.last == \"X\" }", "R028 2:49 `consciousness` has no state `X`"),
        (
            "fn raise(consciousness) { consciousness.mean(\"1h\") > 1.0 }",
            "R028 2:41 `consciousness` is a category: it has no `mean`",
        ),
        (
            "fn raise(spo2) { spo2.mean(\"24h\") < 90.0 }",
            "R027 2:28 a window of 24h does not fit the samples kept of `spo2`",
        ),
        ("fn raise(spo2, now) { spo2.last < 90.0 }", "R015 2:16 parameter name `now` is reserved"),
        ("fn raise(limit) { limit.low > 1.0 }", "R033 2:4 `raise` names no signal, so it is never evaluated"),
        ("fn raise(spo2) { heart_rate.last > 1.0 }", "R022 2:18 unknown name `heart_rate`"),
        (
            "fn raise(spo2) { spo2.last < 90.0 }\nfn clear(spo2) { spo2.last >= 88.0 }",
            "R031 3:4 `raise` and `clear` are both true at 88",
        ),
        (
            "fn raise(spo2) { spo2.last < 90.0 }\nfn message(spo2) { spo2.bogus }",
            "R025 3:25 signals have no function `bogus`",
        ),
        (
            "fn raise(spo2) { spo2.last < 90.0 }\nfn message(spo2, heart_rate) { `${heart_rate.last}` }",
            "R034 3:18 `message` reads `heart_rate`, which neither `raise` nor `clear` names",
        ),
        ("fn raise(spo2) { spo2.last < 90.0 }\nfn claer(spo2) { spo2.last > 92.0 }", "R006 3:4 nothing calls `claer`"),
        ("fn raise(spo2) { spo2.last < ", "R001 3:1 syntax: script is incomplete"),
    ] {
        assert_eq!(faults(body).first().map(String::as_str), Some(expected), "{body}");
    }
}

#[test]
fn fields_of_rule_are_checked_with_the_nearest_name() {
    let text = r#"const RULE = #{ id: "A b", version: 0, owner: "o", priority: "urgent", hodl: "15s", hold: 15, limits: #{ low: "x" } };
fn raise(spo2) { spo2.last < 90.0 }"#;
    let file = SourceFile { path: "r.rhai".to_owned(), text: text.to_owned() };
    let codes: Vec<String> =
        compile(&file, Catalogue::builtin()).1.iter().map(|d| format!("{} {}", d.code, d.message)).collect();
    assert_eq!(
        codes,
        [
            "R003 unknown field `hodl` in RULE",
            "R004 rule id `A b` may hold lower-case letters, digits, `-` and `_` only",
            "R004 priority is `urgent`; it is \"low\", \"medium\" or \"high\"",
            "R004 `version` must be a whole number from 1",
            "R004 `hold` must be a duration with its unit, like \"15s\"",
            "R004 `limits.low` must be a number",
        ]
    );
}

/// A view with SpO₂ features at 85.333…, limits by default.
struct Low;

impl Inputs for Low {
    fn feature(&mut self, feature: usize, _threshold: f64) -> Option<f64> {
        (feature == 0).then_some(256.0 / 3.0)
    }

    fn limit(&self, limit: usize) -> Option<f64> {
        [92.0, 90.0].get(limit).copied()
    }

    fn attribute(&self, _attribute: usize) -> Option<f64> {
        None
    }
}

#[test]
fn a_message_prints_at_the_resolution_and_unknown_as_such() {
    let body = "fn raise(spo2, limit) { spo2.mean(\"30s\") < limit.low }
fn message(spo2, limit) { `SpO₂ mean ${spo2.mean(\"30s\")} %, limit ${limit.low} %, last ${spo2.last}, below by ${limit.low - spo2.mean(\"30s\")}` }";
    let file = SourceFile { path: "r.rhai".to_owned(), text: format!("{HEAD}\n{body}") };
    let (rule, diagnostics) = compile(&file, Catalogue::builtin());
    assert_eq!(diagnostics, []);
    let (text, fault) = rule.expect("compiles").message(Catalogue::builtin(), &mut Low);
    assert_eq!(fault, None);
    assert_eq!(text, "SpO₂ mean 85.3 %, limit 90 %, last unknown, below by 4.666666667");
}

#[test]
fn own_functions_and_let_are_inlined() {
    let body = "fn margin(signal, bound) { let low = signal.mean(\"30s\"); bound - low }
fn raise(spo2, limit) { if margin(spo2, limit.low) > 4.0 { \"high\" } else { \"none\" } }";
    let file = SourceFile { path: "r.rhai".to_owned(), text: format!("{HEAD}\n{body}") };
    let (rule, diagnostics) = compile(&file, Catalogue::builtin());
    assert_eq!(diagnostics, []);
    assert_eq!(rule.expect("compiles").evaluate(&mut Low), (Verdict::True(Priority::High), Some(false)));
}

#[test]
fn wording_does_not_change_a_rules_meaning_but_a_limit_does() {
    let rule = |text: &str| {
        let file = SourceFile { path: "r.rhai".to_owned(), text: text.to_owned() };
        compile(&file, Catalogue::builtin()).0.expect("compiles")
    };
    let base = format!("{HEAD}\nfn raise(spo2, limit) {{ spo2.last < limit.low }}");
    let reworded = format!("// Reviewed\n{base}\nfn message(spo2) {{ `SpO₂ ${{spo2.last}}` }}");
    assert_ne!(rule(&base).hash, rule(&reworded).hash);
    assert_eq!(rule(&base).meaning(), rule(&reworded).meaning());
    assert_ne!(rule(&base).meaning(), rule(&base.replace("90.0", "91.0")).meaning());
}
