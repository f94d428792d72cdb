//! What watches the made-up ward: one rule set, the same with changes, and the changed one written a little differently.
//!
//! Between them the rules use what a fault can break: means and trends that reach back over a restart, holds that are
//! pending, clear holds, bands, latching, cool-downs, and keys that read several signals.

/// A file of a rule set: its path and its text.
pub type RuleFile = (&'static str, String);

const SPO2_LOW: &str = r#"const RULE = #{
    id: "spo2-low", version: 1, owner: "simulation", priority: "high",
    hold: "10s", clear_hold: "10s",
    limits: #{ low: 90.0, very_low: 85.0, clear: 92.0 },
};
fn raise(spo2, limit) {
    if spo2.mean("30s") < limit.very_low { "high" }
    else if spo2.mean("30s") < limit.low { "medium" }
    else { false }
}
fn clear(spo2, limit) { spo2.mean("30s") >= limit.clear }
fn message(spo2, limit) { `SpO2 mean ${spo2.mean("30s")} %, limit ${limit.low} %` }
"#;

const HEART_RATE_HIGH: &str = r#"const RULE = #{
    id: "heart-rate-high", version: 1, owner: "simulation", priority: "high",
    hold: "15s", clear_hold: "20s",
    limits: #{ fast: 120.0, very_fast: 145.0, clear: 110.0 },
};
fn raise(heart_rate, limit) {
    if heart_rate.last >= limit.very_fast { "high" }
    else if heart_rate.last >= limit.fast { "medium" }
    else { false }
}
fn clear(heart_rate, limit) { heart_rate.last < limit.clear }
"#;

const HEART_RATE_UNSTEADY: &str = r#"const RULE = #{
    id: "heart-rate-unsteady", version: 1, owner: "simulation", priority: "low",
    clear_hold: "30s", cool_down: "90s",
    limits: #{ unsteady: 12.0, steady: 8.0 },
};
fn raise(heart_rate, limit) { heart_rate.stddev("5m") > limit.unsteady }
fn clear(heart_rate, limit) { heart_rate.stddev("5m") < limit.steady }
"#;

const RESP_RATE_HIGH: &str = r#"const RULE = #{
    id: "resp-rate-high", version: 1, owner: "simulation", priority: "medium",
    hold: "30s",
    limits: #{ fast: 24.0 },
};
fn raise(resp_rate, limit) { resp_rate.min("1m") > limit.fast }
"#;

const RESP_RATE_CHANGED: &str = r#"const RULE = #{
    id: "resp-rate-changed", version: 1, owner: "simulation", priority: "low",
    hold: "20s", cool_down: "2m",
    limits: #{ change: 8.0 },
};
fn raise(resp_rate, limit) {
    resp_rate.delta("2m") > limit.change || resp_rate.delta("2m") < -limit.change
}
"#;

const TEMPERATURE_RISING: &str = r#"const RULE = #{
    id: "temperature-rising", version: 1, owner: "simulation", priority: "medium",
    hold: "1m", clear_hold: "1m", latching: true,
    limits: #{ warm: 38.0, hot: 39.5 },
};
fn raise(temp_core, limit) {
    if temp_core.max("5m") >= limit.hot { "medium" }
    else if temp_core.last >= limit.warm && temp_core.slope("5m") > 0.05 { "low" }
    else { false }
}
fn clear(temp_core, limit) { temp_core.last < limit.warm }
"#;

const SHOCK: &str = r#"const RULE = #{
    id: "shock", version: 1, owner: "simulation", priority: "high",
    hold: "20s", clear_hold: "20s", gap: "20s", max_age: "5m",
    limits: #{ high: 1.2, clear: 1.0 },
};
fn raise(heart_rate, nibp_sys, limit) { heart_rate.last / nibp_sys.last >= limit.high }
fn clear(heart_rate, nibp_sys, limit) { heart_rate.last / nibp_sys.last <= limit.clear }
"#;

const SCORE: &str = r#"const RULE = #{
    id: "score", version: 1, owner: "simulation", priority: "high",
    hold: "10s", clear_hold: "30s", max_age: "2m",
    limits: #{ urgent: 3.0, emergency: 5.0 },
};
fn of_heart_rate(rate) { if rate >= 130.0 { 3.0 } else if rate >= 110.0 { 2.0 } else { 0.0 } }
fn of_resp_rate(rate) { if rate >= 25.0 { 3.0 } else if rate >= 21.0 { 2.0 } else { 0.0 } }
fn of_spo2(value) { if value < 90.0 { 3.0 } else if value < 94.0 { 1.0 } else { 0.0 } }
fn raise(heart_rate, resp_rate, spo2, limit) {
    let score = of_heart_rate(heart_rate.last) + of_resp_rate(resp_rate.last ?? 12.0) + of_spo2(spo2.last);
    if score >= limit.emergency { "high" } else if score >= limit.urgent { "medium" } else { false }
}
"#;

/// The first set, the second (a limit changed, a rule added and one removed), and the second once more with another
/// comment: other bytes, the same meaning.
pub fn sets() -> [Vec<RuleFile>; 3] {
    let both = [
        ("heart-rate-unsteady.rhai", HEART_RATE_UNSTEADY),
        ("score.rhai", SCORE),
        ("shock.rhai", SHOCK),
        ("spo2-low.rhai", SPO2_LOW),
        ("temperature-rising.rhai", TEMPERATURE_RISING),
    ];
    let owned = |files: &[(&'static str, &str)]| -> Vec<RuleFile> {
        files.iter().map(|(path, text)| (*path, (*text).to_owned())).collect()
    };
    let (mut first, mut second) = (owned(&both), owned(&both));
    first.extend(owned(&[("heart-rate-high.rhai", HEART_RATE_HIGH), ("resp-rate-high.rhai", RESP_RATE_HIGH)]));
    let faster = HEART_RATE_HIGH.replace("fast: 120.0", "fast: 126.0");
    second.extend(owned(&[("heart-rate-high.rhai", &faster), ("resp-rate-changed.rhai", RESP_RATE_CHANGED)]));
    let mut third = second.clone();
    for (_, text) in &mut third {
        text.insert_str(0, "// Reviewed.\n");
    }
    [first, second, third]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wardbell_rules::{SourceFile, compile_all};
    use wardbell_schemas::catalogue::Catalogue;

    use super::*;

    #[test]
    fn all_sets_are_sound_and_the_first_two_differ_by_a_change_an_addition_and_a_removal() {
        let sets = sets();
        for files in &sets {
            let file = |(path, text): &RuleFile| SourceFile { path: (*path).to_owned(), text: text.clone() };
            let files: Vec<SourceFile> = files.iter().map(file).collect();
            let (rules, faults) = compile_all(&files, Catalogue::builtin());
            let faults: Vec<String> =
                faults.iter().map(|fault| format!("{}:{} {}", fault.path, fault.line, fault.message)).collect();
            assert_eq!((rules.len(), faults), (files.len(), Vec::new()));
        }
        let [first, second, third] = sets.map(|files| files.into_iter().collect::<BTreeSet<RuleFile>>());
        assert_eq!((first.difference(&second).count(), second.difference(&first).count()), (2, 2));
        assert_eq!(second.intersection(&third).count(), 0);
    }
}
