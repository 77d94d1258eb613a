//! A machine in a file: `hvb run --config FILE` and `--print-config`.
//!
//! The file has the names of the options. It becomes options in front of those of the command line,
//! so that both are checked by the same code, and those of the command line win.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, CommandFactory};
use toml::{Table, Value};

use crate::cli::Cli;

/// Options that say how to run this once, and what to do with a file.
const NOT_IN_A_FILE: [&str; 4] = ["config", "print-config", "help", "version"];

/// A definition that is larger is something else: nobody reads a disk image to its end.
const MAX_BYTES: u64 = 1 << 20;

/// A command line in which the file of `--config`, if it is given, has become options.
pub(crate) struct Expanded {
    /// The words, with the program's name.
    pub(crate) words: Vec<OsString>,
    /// The file.
    pub(crate) file: Option<PathBuf>,
}

/// Reads the file that a command line names.
///
/// # Errors
/// It cannot be read, is no TOML, or has a key or value that is no option.
pub(crate) fn expand(mut words: Vec<OsString>) -> Result<Expanded> {
    let Some(file) = named_file(&words) else { return Ok(Expanded { words, file: None }) };
    let options =
        options(&file).with_context(|| format!("{}", file.display()))?.into_iter().map(Into::into);
    // After "hvb run".
    words.splice(2..2, options);
    Ok(Expanded { words, file: Some(file) })
}

fn named_file(words: &[OsString]) -> Option<PathBuf> {
    if words.get(1).is_none_or(|word| word != "run") {
        return None;
    }
    // What else is wrong with the command line is found later.
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).ok()?;
    matches.subcommand_matches("run")?.get_one::<PathBuf>("config").cloned()
}

fn options(file: &Path) -> Result<Vec<String>> {
    options_of(&read(file)?)
}

/// The text of a file with settings.
///
/// # Errors
/// It cannot be read, or is something else.
pub(crate) fn read(file: &Path) -> Result<String> {
    let mut text = String::new();
    // Not the size that the file says it has: that of a pipe or a device is 0.
    let read = File::open(file)?.take(MAX_BYTES + 1).read_to_string(&mut text);
    ensure!(text.len() as u64 <= MAX_BYTES, "more than 1 MiB is too much for a file of settings");
    read?;
    Ok(text)
}

/// The options that a file with this text stands for.
///
/// # Errors
/// It is no TOML, or has a key or value that is no option.
pub(crate) fn options_of(text: &str) -> Result<Vec<String>> {
    let table: Table = toml::from_str(text).map_err(|error| located(text, &error))?;
    let run = run_command();
    let mut words = Vec::new();
    for (key, value) in &table {
        let option = run.get_arguments().find(|arg| is_key(arg) && arg.get_long() == Some(key));
        let option = option.with_context(|| unknown(&run, key))?;
        words_of(option, key, value, &mut words)?;
    }
    Ok(words)
}

/// The place and the message, without the excerpt of the file, which takes several lines.
pub(crate) fn located(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let line = line_of(text, error.span().map_or(0, |span| span.start));
    anyhow!("line {line}: {}", error.message().replace('\n', "; "))
}

/// The line of a text in which the byte at this place is; the first is 1.
pub(crate) fn line_of(text: &str, place: usize) -> usize {
    text.get(..place).unwrap_or_default().matches('\n').count().saturating_add(1)
}

fn run_command() -> clap::Command {
    let run = Cli::command().find_subcommand("run").cloned();
    run.unwrap_or_default()
}

fn is_key(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| !NOT_IN_A_FILE.contains(&long))
}

fn unknown(run: &clap::Command, key: &str) -> String {
    let keys = run.get_arguments().filter(|arg| is_key(arg)).filter_map(Arg::get_long);
    format!("unknown key '{key}': give one of {}", keys.collect::<Vec<_>>().join(", "))
}

fn words_of(option: &Arg, key: &str, value: &Value, words: &mut Vec<String>) -> Result<()> {
    let is_list = matches!(option.get_action(), ArgAction::Append);
    match value {
        Value::Array(values) if is_list => {
            for value in values {
                ensure!(!value.is_array(), "{key}: give texts in one pair of brackets");
                words_of(option, key, value, words)?;
            }
        }
        Value::Boolean(value) if !option.get_action().takes_values() => {
            words.extend(value.then(|| format!("--{key}")));
        }
        _ if !option.get_action().takes_values() => bail!("{key}: give true or false"),
        Value::String(text) => words.push(format!("--{key}={text}")),
        Value::Integer(number) => words.push(format!("--{key}={number}")),
        _ if is_list => bail!("{key}: give texts in brackets, such as [\"…\", \"…\"]"),
        _ => bail!("{key}: give a text in quotation marks, or a number"),
    }
    Ok(())
}

/// The options of `hvb run` as a file for `--config`: those that were given, and the defaults of the
/// others.
///
/// # Errors
/// A value is no UTF-8, which TOML cannot hold.
pub(crate) fn print(matches: &ArgMatches) -> Result<String> {
    let mut table = Table::new();
    for option in run_command().get_arguments().filter(|arg| is_key(arg)) {
        let (Some(key), id) = (option.get_long(), option.get_id().as_str()) else { continue };
        let value = if option.get_action().takes_values() {
            let Some(values) = matches.get_raw(id) else { continue };
            let values = values.map(|value| text(key, value)).collect::<Result<Vec<_>>>()?;
            match option.get_action() {
                ArgAction::Append => Value::Array(values.into_iter().map(Value::String).collect()),
                _ => values.last().map_or(Value::String(String::new()), |text| scalar(text)),
            }
        } else {
            Value::Boolean(matches.get_flag(id))
        };
        table.insert(key.to_owned(), value);
    }
    Ok(toml::to_string_pretty(&table)?)
}

/// A number where the text is one that comes back as it was.
pub(crate) fn scalar(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => Value::Integer(number),
        _ => Value::String(text.to_owned()),
    }
}

fn text(key: &str, value: &OsStr) -> Result<String> {
    let text = value.to_str().with_context(|| format!("--{key} is no UTF-8, as TOML must be"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use clap::Parser;

    use super::*;
    use crate::cli::{Command, RunArgs};

    #[test]
    fn a_file_is_read_up_to_a_limit_whatever_it_is() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "more than 1 MiB is too much for a file of settings");
        let (output, mut input) = std::io::pipe().unwrap();
        input.write_all(b"cpus = 2").unwrap();
        drop(input);
        let name = format!("/dev/fd/{}", output.as_raw_fd());
        assert_eq!(read(Path::new(&name)).unwrap(), "cpus = 2");
    }

    fn words(arguments: &[&str]) -> Vec<OsString> {
        ["hvb", "run"].iter().chain(arguments).map(Into::into).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn run(text: &str, arguments: &[&str]) -> Result<RunArgs> {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        let expanded = expand(words(&[&["--config", path], arguments].concat()))?;
        match Cli::try_parse_from(expanded.words)?.command {
            Command::Run(arguments) => Ok(RunArgs { config: None, ..*arguments }),
            other => panic!("{other:?}"),
        }
    }

    fn refusal(text: &str) -> String {
        let error = format!("{:#}", run(text, &[]).unwrap_err());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    const EVERYTHING: &str = r#"
        kernel = "/boot/vmlinuz"
        append = "-x console=ttyS0"
        cpus = 2
        memory = "2G"
        max-memory = "8G"
        disk = ["a.raw,id=a", "b.qcow2,readonly"]
        net = ["passt"]
        status-report = true
        free-page-reporting = "off"
        name = "db"
    "#;

    #[test]
    fn a_file_says_what_the_options_say() {
        let options = [
            "--kernel=/boot/vmlinuz",
            "--append=-x console=ttyS0",
            "--cpus=2",
            "--memory=2G",
            "--max-memory=8G",
            "--disk=a.raw,id=a",
            "--disk=b.qcow2,readonly",
            "--net=passt",
            "--status-report",
            "--free-page-reporting=off",
            "--name=db",
        ];
        assert_eq!(run(EVERYTHING, &[]).unwrap(), run("", &options).unwrap());
    }

    #[test]
    fn the_command_line_wins_and_adds_to_lists() {
        let args = run(EVERYTHING, &["--memory", "4G", "--disk", "c", "--name", "other"]).unwrap();
        assert_eq!(args.memory.bytes(), 4 << 30);
        assert_eq!(args.name.as_deref(), Some("other"));
        assert_eq!(args.disk.len(), 3);
        assert_eq!(args.cpus, 2);
    }

    #[test]
    fn what_is_printed_is_a_file_for_the_same_machine() {
        for arguments in [&[][..], &["--settle", "3", "--serial", "file:/x y", "--initrd", "1"]] {
            let args = run(EVERYTHING, arguments).unwrap();
            let file = file(EVERYTHING);
            let path = file.path().to_str().unwrap();
            let words = expand(words(&[&["--config", path], arguments].concat())).unwrap().words;
            let matches = Cli::command().get_matches_from(words);
            let printed = print(matches.subcommand_matches("run").unwrap()).unwrap();
            assert!(
                printed.contains("cpus = 2\n") && printed.contains("grace = 60\n"),
                "{printed}"
            );
            assert!(printed.contains("status-report = true\n"), "{printed}");
            assert_eq!(run(&printed, &[]).unwrap(), args, "{printed}");
        }
    }

    #[test]
    fn a_file_that_defines_no_machine_is_refused_with_place_and_remedy() {
        assert!(
            refusal("kernal = 'k'").contains("unknown key 'kernal': give one of name, kernel, ")
        );
        assert!(refusal("config = 'k'").contains("unknown key 'config'"));
        assert!(refusal("cpus = 1\nmemory = =").contains("line 2: "));
        assert!(refusal("cpus = 1\ncpus = 2").contains("duplicate key"));
        assert!(refusal("status-report = 1").contains("status-report: give true or false"));
        assert!(refusal("kernel = ['k']").contains("kernel: give a text in quotation marks"));
        assert!(refusal("cpus = 1.5").contains("cpus: give a text"));
        assert!(refusal("disk = true").contains("disk: give texts in brackets"));
        assert!(refusal("disk = [['a']]").contains("disk: "));
        assert!(refusal("[kernel]").contains("kernel: "));
        let missing = expand(words(&["--config", "/does/not/exist"])).err().unwrap();
        assert!(format!("{missing:#}").starts_with("/does/not/exist: No such file"), "{missing:#}");
    }

    #[test]
    fn other_commands_have_no_definition() {
        for arguments in [&["hvb"][..], &["hvb", "info", "--config"], &["hvb", "run", "--config"]] {
            let words: Vec<OsString> = arguments.iter().map(Into::into).collect();
            assert_eq!(expand(words.clone()).unwrap().words, words);
        }
    }
}
