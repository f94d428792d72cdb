//! Files of connectors: every fault at its place, and what a sound file becomes.

use super::trial::check_samples;
use super::*;

const GOOD: &str = r#"format = "json"
[fields]
patient = "p"
device = { constant = "d" }
time = "t"
[time]
lateness = "2m"
time_resolution = "1m"
reset_dates = ["2000-01-01"]
[[wide]]
at = "sat"
signal = "spo2"
unit = "%"
[labels]
"HF" = "heart_rate"
"#;

fn file(text: &str) -> SourceFile {
    SourceFile { path: "ward/vendor.connector.toml".to_owned(), text: text.to_owned() }
}

fn faults(text: &str) -> Vec<String> {
    let shown = |fault: Diagnostic| {
        let help = fault.help.map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{} {}:{} {}{help}", fault.code, fault.line, fault.column, fault.message)
    };
    parse(&file(text), Catalogue::builtin()).1.into_iter().map(shown).collect()
}

fn sound(text: &str) -> Connector {
    let (connector, faults) = parse(&file(text), Catalogue::builtin());
    connector.unwrap_or_else(|| panic!("{faults:?}"))
}

#[test]
fn a_sound_file_becomes_a_decoder_a_profile_and_bounds() {
    let connector = sound(GOOD);
    assert_eq!((connector.name.as_str(), connector.is_whole_file()), ("vendor", false));
    let bounds = Bounds {
        lateness_us: Some(120_000_000),
        skew_us: None,
        is_coarse: true,
        reset_days: vec![946_684_800_000_000],
    };
    assert_eq!(connector.bounds, bounds);
    let mut trial = trial::Trial::new(&connector);
    let lines: Vec<String> =
        trial.record(br#"{"p":"x","t":"2026-03-01T10:15Z","sat":97}"#).iter().map(trial::Line::json).collect();
    assert_eq!(
        lines,
        [
            r#"{"record":1,"patient":"x","device":"d","signal":"spo2","method":"-","value":97,"unit":"%","quality":"ok","time":"2026-03-01T10:15:00.000000Z","policies":["default_unit"]}"#
        ]
    );
}

#[test]
fn the_hash_is_of_the_content_whatever_its_form() {
    let hash = |text: &str| sound(text).hash;
    let other_form = format!("# a comment\n{}", GOOD.replace("lateness = \"2m\"\n", "") + "[policies]\n")
        .replace("[time]\n", "[time]\nlateness   =   \"2m\"\n")
        .replace("[policies]\n", "");
    assert_eq!(hash(GOOD), hash(&other_form));
    assert_ne!(hash(GOOD), hash(&GOOD.replace("2m", "3m")));
    assert_eq!(hash(GOOD).len(), 64);
}

#[test]
fn every_unknown_key_is_named_with_the_nearest_and_its_place() {
    let text = GOOD
        .replace("format", "fomat = \"x\"\nformat")
        .replace("patient = \"p\"", "patient = \"p\"\npatiant = \"q\"")
        + "\"PF\" = { signl = \"pulse_rate\" }\n[policies]\nassume_zon = \"UTC\"\n[control]\nactions = { A01 = \"ignore\" }\nacton = \"x\"\n";
    let text = text.replace("constant", "constnt");
    let found = faults(&text);
    for expected in [
        "M002 1:1 unknown key `fomat` in a connector's file (did you mean `format`?)",
        "M002 5:1 unknown key `patiant` in [fields] (did you mean `patient`?)",
        "M002 6:12 unknown key `constnt` in a place (did you mean `constant`?)",
        "M002 18:10 unknown key `signl` in a label (did you mean `signal`?)",
        "M002 20:1 unknown key `assume_zon` in [policies] (did you mean `assume_zone`?)",
        "M002 23:1 unknown key `acton` in [control] (did you mean `action`?)",
    ] {
        assert!(found.iter().any(|fault| fault == expected), "{expected}\n{found:#?}");
    }
}

#[test]
fn wrong_values_are_named_at_their_place_all_at_once() {
    let text = GOOD
        .replace("\"spo2\"", "\"spo\"")
        .replace("unit = \"%\"", "unit = \"mmHg\"")
        .replace("\"heart_rate\"", "\"heart_rat\"")
        .replace("2000-01-01", "May")
        .replace("patient = \"p\"", "patient = \"p[\"");
    let found = faults(&text);
    let places: Vec<&str> = found.iter().filter_map(|fault| fault.split(' ').nth(1)).collect();
    assert_eq!(places, ["3:11", "9:16", "12:10", "15:8"], "{found:#?}");
    assert!(found.iter().all(|fault| fault.starts_with("M005")), "{found:#?}");
    assert!(found[2].contains("did you mean `spo2`?") && found[3].contains("did you mean `heart_rate`?"), "{found:#?}");
    let unit = faults(&GOOD.replace("unit = \"%\"", "unit = \"mmHg\""));
    assert!(unit.len() == 1 && unit[0].starts_with("M005 13:8 `mmHg` is not a unit of `spo2`"), "{unit:?}");
}

#[test]
fn wrong_types_and_contradictions_are_faults() {
    for (text, what) in [
        ("".to_owned(), "missing field `format`"),
        ("format = \"xml\"\n".to_owned(), "unknown variant `xml`"),
        ("format = \"json\"\n".to_owned(), "nothing says where readings stand"),
        ("format = \"json\n".to_owned(), "not TOML"),
        (GOOD.replace("lateness = \"2m\"", "lateness = 120"), "invalid type"),
        (GOOD.replace("time = \"t\"", "time = true"), "a path or column name"),
        (GOOD.replace("time = \"t\"", "time = { constant = \"a\", key = true }"), "a place has one of"),
        (GOOD.replace("\"HF\" = \"heart_rate\"", "\"HF\" = 3"), "a signal id like"),
        (GOOD.replace("format = \"json\"", "format = \"canonical\""), "canonical JSON has its places fixed"),
        (GOOD.replace("\"HF\" =", "\"sat\" ="), "has a meaning here and in [labels]"),
        (GOOD.replace("[labels]", "[[wide]]\nat = \"sat\"\n[labels]"), "stands twice"),
        (GOOD.replace("[labels]", "[[wide]]\nat = \"RR\"\n[labels]"), "does not say what `RR` is"),
        (format!("{GOOD}[csv]\ndelimiter = \";\"\n"), "the format is JSON"),
    ] {
        let found = faults(&text);
        assert!(found.iter().any(|fault| fault.contains(what)), "{what}\n{found:#?}");
        assert!(parse(&file(&text), Catalogue::builtin()).0.is_none(), "{what}");
    }
    let known = GOOD.replace("[labels]", "[[wide]]\nat = \"SpO2\"\n[labels]");
    assert_eq!(faults(&known), Vec::<String>::new(), "the catalogue knows this place's label");
}

#[test]
fn canonical_json_can_have_words_of_its_own() {
    let connector = sound("format = \"canonical\"\n[labels]\n\"RR\" = { signal = \"resp_rate\", unit = \"/min\" }\n");
    let mut trial = trial::Trial::new(&connector);
    let record = br#"{"patient":"p","device":"d","time":1772360130,"signal":"RR","value":14}"#;
    let line = trial.record(record).remove(0).json();
    assert!(line.contains(r#""signal":"resp_rate","method":"-","value":14,"unit":"/min","quality":"ok""#), "{line}");
}

#[test]
fn samples_are_held_against_what_is_expected_line_by_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let path = folder.path().join("vendor.connector.toml").display().to_string();
    let file = SourceFile { path, text: GOOD.to_owned() };
    let connector = parse(&file, Catalogue::builtin()).0.expect("a sound file");
    let check = || -> Vec<String> {
        let (_, faults) = check_samples(&connector, &file);
        faults.into_iter().map(|fault| format!("{} {} {}", fault.code, fault.line, fault.message)).collect()
    };
    assert_eq!(check(), Vec::<String>::new(), "no samples, nothing to compare");
    write(
        "vendor.samples.jsonl",
        "{\"p\":\"x\",\"t\":1772360130,\"sat\":97}\n\n{\"p\":\"x\",\"t\":1772360131,\"sat\":\"?\"}\n",
    );
    let found = check();
    assert!(found.len() == 1 && found[0].starts_with("M007 0 samples without"), "{found:?}");
    let time = "2026-03-01T10:15:30.000000Z";
    let first = |value: &str| {
        format!(
            r#"{{"record": 1, "patient":"x","device":"d","signal":"spo2","method":"-","value":{value},"unit":"%","quality":"ok","policies":["default_unit"],"time":"{time}"}}"#
        )
    };
    let second = r#"{"record":2,"patient":"x","device":"d","signal":"spo2","method":"-","quality":"missing","reason":"sentinel","time":"2026-03-01T10:15:31.000000Z"}"#;
    write("vendor.expected.jsonl", &format!("{}\n{second}\n", first("97")));
    assert_eq!(check(), Vec::<String>::new(), "blanks and the order of keys do not matter");
    write("vendor.expected.jsonl", &format!("{}\n\n{second}\n{second}\n", first("96")));
    assert_eq!(check(), ["M006 1 the samples give another `value`", "M006 4 the samples give 2 lines only"]);
    write("vendor.expected.jsonl", "{\n");
    assert_eq!(check(), ["M006 1 not a line of JSON", "M006 2 the samples give 1 lines more"]);
}

#[test]
fn the_normalizer_set_is_named_by_its_files_and_topics_in_any_order() {
    let of_topic = |text: &str, topic: &str| Connector { topics: vec![topic.to_owned()], ..sound(text) };
    let (monitors, cuffs) = (of_topic(GOOD, "monitors"), of_topic("format = \"canonical\"\n", "cuffs"));
    let hash = normalizer_hash(&[monitors.clone(), cuffs.clone()]);
    assert_eq!(hash, normalizer_hash(&[cuffs.clone(), monitors.clone()]));
    let other_topic = Connector { topics: vec!["pumps".to_owned()], ..monitors.clone() };
    let other_file = of_topic(&GOOD.replace("lateness = \"2m\"", "lateness = \"3m\""), "monitors");
    for others in [vec![], vec![monitors], vec![other_topic, cuffs.clone()], vec![other_file, cuffs]] {
        assert_ne!(hash, normalizer_hash(&others));
    }
}
