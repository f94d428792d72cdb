//! Rule packs that ship with the binary, as text.

use crate::diagnostic::SourceFile;

/// The adult-ward pack: `packs/adult-ward`.
pub fn adult_ward() -> Vec<SourceFile> {
    ADULT_WARD.iter().map(|(path, text)| SourceFile { path: (*path).to_owned(), text: (*text).to_owned() }).collect()
}

macro_rules! pack {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../", $path))),)*]
    };
}

const ADULT_WARD: &[(&str, &str)] = pack![
    "packs/adult-ward/abp-mean-low.rhai",
    "packs/adult-ward/apnea.rhai",
    "packs/adult-ward/consciousness-changed.rhai",
    "packs/adult-ward/etco2-out-of-range.rhai",
    "packs/adult-ward/etco2-rising.rhai",
    "packs/adult-ward/heart-rate-high.rhai",
    "packs/adult-ward/heart-rate-low.rhai",
    "packs/adult-ward/heart-rate-rising.rhai",
    "packs/adult-ward/news2-total-high.rhai",
    "packs/adult-ward/nibp-sys-high.rhai",
    "packs/adult-ward/nibp-sys-low.rhai",
    "packs/adult-ward/resp-rate-high.rhai",
    "packs/adult-ward/resp-rate-low.rhai",
    "packs/adult-ward/shock-index.rhai",
    "packs/adult-ward/spo2-falling.rhai",
    "packs/adult-ward/spo2-high-on-oxygen.rhai",
    "packs/adult-ward/spo2-low-on-oxygen.rhai",
    "packs/adult-ward/spo2-low.rhai",
    "packs/adult-ward/spo2-very-low.rhai",
    "packs/adult-ward/temp-core-high.rhai",
    "packs/adult-ward/temp-core-low.rhai",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_of_the_folder_ships() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/packs/adult-ward");
        let entries = std::fs::read_dir(folder).expect("the folder is there");
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".rhai"))
            .collect();
        names.sort();
        let shipped: Vec<String> =
            adult_ward().iter().filter_map(|file| Some(file.path.rsplit('/').next()?.to_owned())).collect();
        assert_eq!(shipped, names);
    }
}
