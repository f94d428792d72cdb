//! Records that nothing can be made of, each broken in another way a gateway has been seen to break them. Every one has
//! to end in the dead-letter topic, and none may hold up the good ones around it.

use wardbell_schemas::Micros;

/// The `n`th poison record; after all kinds it is the first one again.
pub fn poison(n: u64, time_us: Micros) -> Vec<u8> {
    let whole = |reading: &str| {
        format!(r#"{{"patient":"load-00000","device":"monitor-00000","time":{time_us},{reading}}}"#).into_bytes()
    };
    match n % 10 {
        // Cut off in the middle.
        0 => br#"{"patient":"load-00000","device":"monitor-0"#.to_vec(),
        // Not even text.
        1 => b"\xff\xfe\x00\x01\x80".to_vec(),
        // Of nobody.
        2 => format!(r#"{{"device":"monitor-00000","time":{time_us},"signal":"spo2","value":97,"unit":"%"}}"#).into(),
        // A time that is no time anywhere.
        3 => br#"{"patient":"load-00000","device":"monitor-00000","time":"2026-03-01 10:15:30","signal":"spo2","value":97,"unit":"%"}"#.to_vec(),
        // Nothing in it.
        4 => whole(r#""readings":[]"#),
        // A signal that nobody knows, and one that means several.
        5 => whole(r#""signal":"flux_capacitor","value":97,"unit":"%""#),
        6 => whole(r#""signal":"MAP","value":97,"unit":"mm[Hg]""#),
        // A number that may be two different ones.
        7 => whole(r#""signal":"spo2","value":"97,5","unit":"%""#),
        // Without a unit, and with one of another quantity.
        8 => whole(r#""signal":"heart_rate","value":72"#),
        _ => whole(r#""signal":"heart_rate","value":72,"unit":"mm[Hg]""#),
    }
}
