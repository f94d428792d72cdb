//! `wardbell rules`: publishes rule sets, lists what is published, and gives it back as files.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use wardbell_connectors::log::{Log, LogError, Remedy};
use wardbell_schemas::alert::print_time;

use super::{FINDING, MISUSE, OK, colored, load_config, plural, start_logs};
use crate::config::Config;
use crate::sets::folder::Unsound;
use crate::sets::{Change, ControlTopic, Document, Published, same_site_and_clock, short};

/// Publish rule sets, list what is published, and give it back as files
///
/// A published set comes into force in a running job within a second, without a restart: windows, pending holds and open
/// alerts survive. Rolling back is publishing an old set again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell rules publish --config wardbell.toml --dry-run\n  wardbell rules list --config wardbell.toml\n  wardbell rules show 3 --config wardbell.toml --out set-3"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Publish(Publish),
    List(List),
    Show(Show),
}

/// Check rules, run their cases, say what they change, and publish them
///
/// A fault or a failed case changes nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell rules publish --config wardbell.toml --dry-run\n  wardbell rules publish rules/packs/adult-ward --config wardbell.toml"
)]
struct Publish {
    /// Files or folders that make the whole set; without them, `rules` of the configuration
    paths: Vec<PathBuf>,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// One JSON object with the change and the number
    #[arg(long)]
    json: bool,
}

/// List the published sets: number, time, rules, hash
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wardbell rules list --config wardbell.toml")]
struct List {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// One JSON object a set
    #[arg(long)]
    json: bool,
}

/// Show a published set, or write its files back
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell rules show --config wardbell.toml\n  wardbell rules show 3 --config wardbell.toml --out set-3"
)]
struct Show {
    /// Its number; without it, the newest
    number: Option<u64>,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the rule files into this folder, which must be new or empty
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> u8 {
    start_logs(true);
    let result = match &arguments.command {
        Command::Publish(arguments) => publish(arguments),
        Command::List(arguments) => list(arguments),
        Command::Show(arguments) => show(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        MISUSE
    })
}

/// What `publish` tells machines.
#[derive(Debug, Serialize)]
struct Report<'a> {
    set: &'a str,
    rules: usize,
    cases: usize,
    /// Number of the set that was newest before.
    compared_with: Option<u64>,
    change: Option<Change>,
    /// The number it has now; absent if nothing was published.
    published: Option<u64>,
}

fn publish(arguments: &Publish) -> Result<u8, LogError> {
    let Some(config) = load_config(&arguments.config) else {
        return Ok(MISUSE);
    };
    let mut folder = config.rules_folder();
    if !arguments.paths.is_empty() {
        folder.paths.clone_from(&arguments.paths);
    }
    let sound = match folder.load() {
        Ok(sound) => sound,
        Err(unsound) => {
            eprint!("{}", unsound.render(colored()));
            eprintln!("nothing is published");
            return Ok(if matches!(unsound, Unsound::Nothing(_)) { MISUSE } else { FINDING });
        }
    };
    let document = &sound.document;
    let say = |text: &str| {
        if !arguments.json {
            println!("{text}");
        }
    };
    let rules = plural(document.rules().len(), "rule", "rules");
    say(&format!("{rules}, {} passed", plural(sound.n_cases, "case", "cases")));
    let topic = control_topic(&config, config.create_topics && !arguments.dry_run)?;
    let newest = topic.newest()?;
    let change = match &newest {
        Some(newest) => compare(newest, document, &say)?,
        None => None,
    };
    let hash = document.hash();
    let published = if newest.as_ref().is_some_and(|newest| newest.hash == hash) {
        say("this is the published set: there is nothing to publish");
        None
    } else if arguments.dry_run {
        say("not published: this was a dry run");
        None
    } else {
        let number = topic.publish(document)?;
        say(&format!("published as set {number} ({})", short(&hash)));
        Some(number)
    };
    if arguments.json {
        let (rules, cases, compared_with) = (document.rules().len(), sound.n_cases, newest.map(|newest| newest.number));
        let report = Report { set: &hash, rules, cases, compared_with, change, published };
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    }
    Ok(OK)
}

/// Says what a set changes beside the newest; nothing where that one cannot be read here.
fn compare(newest: &Published, document: &Document, say: &dyn Fn(&str)) -> Result<Option<Change>, LogError> {
    let refuse = |what: String| LogError::new(Remedy::Refuse, "comparing with the published set", what);
    let before = match newest.load() {
        Ok(before) => before,
        Err(why) => {
            say(&format!("set {} is published, which cannot be compared: {why}", newest.number));
            return Ok(None);
        }
    };
    same_site_and_clock(&before.settings, &document.settings()).map_err(refuse)?;
    let after = document.load().map_err(|why| refuse(why.to_string()))?;
    let change = Change::between(&before, &after);
    say(&format!("compared with set {}, published {}:", newest.number, print_time(newest.time_us)));
    for line in change.lines() {
        say(&format!("  {line}"));
    }
    Ok(Some(change))
}

/// A published set as `list --json` tells it.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    number: u64,
    time: String,
    set: &'a str,
    /// Rules it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<usize>,
    /// Why this binary cannot use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<String>,
}

fn list(arguments: &List) -> Result<u8, LogError> {
    let Some(config) = load_config(&arguments.config) else {
        return Ok(MISUSE);
    };
    let published = control_topic(&config, false)?.all()?;
    if published.is_empty() {
        eprintln!("nothing is published on topic `{}`", config.control.topic);
        return Ok(MISUSE);
    }
    if !arguments.json {
        println!("{:>6}  {:<27}  {:>5}  set", "number", "published", "rules");
    }
    for published in &published {
        let (number, time, set) = (published.number, print_time(published.time_us), published.hash.as_str());
        let (rules, unusable) = match published.document() {
            Ok(document) => (Some(document.rules().len()), None),
            Err(why) => (None, Some(why.to_string())),
        };
        if arguments.json {
            let entry = Entry { number, time, set, rules, unusable };
            println!("{}", serde_json::to_string(&entry).unwrap_or_default());
        } else {
            let rules = rules.map_or_else(|| "-".to_owned(), |rules| rules.to_string());
            let why = unusable.map(|why| format!("  cannot be used here: {why}")).unwrap_or_default();
            println!("{number:>6}  {time:<27}  {rules:>5}  {}{why}", short(set));
        }
    }
    Ok(OK)
}

fn show(arguments: &Show) -> Result<u8, LogError> {
    let Some(config) = load_config(&arguments.config) else {
        return Ok(MISUSE);
    };
    let topic = control_topic(&config, false)?;
    let number = arguments.number.map_or_else(|| topic.newest_number(), Ok)?;
    let Some(published) = topic.at(number)? else {
        eprintln!("there is no set {number} on topic `{}`; `wardbell rules list` shows them", config.control.topic);
        return Ok(MISUSE);
    };
    let document = match published.document() {
        Ok(document) => document,
        Err(why) => {
            eprintln!("set {number} cannot be used here: {why}");
            return Ok(FINDING);
        }
    };
    let rules = document.rules();
    if let Some(folder) = &arguments.out {
        if let Err(error) = write_files(folder, &document) {
            eprintln!("error: set {number} cannot be written to `{}`: {error}", folder.display());
            return Ok(MISUSE);
        }
        println!("set {number}: {} written to {}", plural(rules.len(), "file", "files"), folder.display());
        return Ok(OK);
    }
    println!("set {number}, published {}, {}", print_time(published.time_us), published.hash);
    for rule in rules {
        println!("\n{}\n{}", rule.path, rule.text.trim_end());
    }
    Ok(OK)
}

/// Writes the rule files; nothing that is there is written over, and nothing outside the folder.
fn write_files(folder: &Path, document: &Document) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    if std::fs::read_dir(folder)?.next().is_some() {
        return Err(std::io::Error::other("the folder is not empty"));
    }
    for rule in document.rules() {
        let path = Path::new(&rule.path);
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(std::io::Error::other(format!("`{}` is no path below it", rule.path)));
        }
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, &rule.text)?;
    }
    Ok(())
}

/// The control topic of a configuration: checked, and made if that is wanted.
fn control_topic(config: &Config, create: bool) -> Result<ControlTopic, LogError> {
    let log: Arc<dyn Log> = Arc::new(config.kafka.open()?);
    log.prepare(&[ControlTopic::spec(&config.control.topic, create)])?;
    Ok(ControlTopic::new(log, &config.control.topic))
}

#[cfg(test)]
mod tests {
    use wardbell_core::partition::Settings;
    use wardbell_rules::SourceFile;

    use super::*;

    fn document(path: &str) -> Document {
        let text = "const RULE = #{};\n".to_owned();
        Document::new(
            &[SourceFile { path: path.to_owned(), text: text.clone() }, SourceFile { path: "a.rhai".to_owned(), text }],
            &Settings::new("ward"),
        )
    }

    #[test]
    fn a_set_is_written_back_as_it_was_and_never_over_something() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("set-3");
        write_files(&out, &document("icu/b.rhai")).expect("written");
        let written = std::fs::read_to_string(out.join("icu/b.rhai")).expect("it is there");
        assert_eq!(written, "const RULE = #{};\n");
        assert!(write_files(&out, &document("icu/b.rhai")).is_err(), "the folder is not empty any more");

        let bytes = String::from_utf8(document("icu/b.rhai").bytes()).expect("JSON");
        let outside = Document::read(bytes.replace("icu/b.rhai", "../b.rhai").as_bytes()).expect("a document");
        assert!(write_files(&folder.path().join("other"), &outside).is_err());
        assert!(!folder.path().join("b.rhai").exists());
    }
}
