//! A QEMU's command line: its words, and the options in them.

use crate::{MAX_TEXT_BYTES, OptionList, Unreadable};

/// A command line, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// The program's name, without directories; `None` if the text begins with an option.
    pub program: Option<String>,
    /// Its options.
    pub options: OptionList,
    /// Words with a shell's variables or substitutions, which only the shell could replace.
    pub unexpanded: Vec<String>,
}

/// Options that always have a value, even one that begins with `-`.
const WITH_VALUE: [&str; 18] = [
    "M",
    "accel",
    "append",
    "cpu",
    "device",
    "global",
    "kernel",
    "m",
    "machine",
    "mem-path",
    "name",
    "netdev",
    "numa",
    "object",
    "overcommit",
    "readconfig",
    "set",
    "smp",
];

/// What ends a command in a shell.
const ENDS: [&str; 6] = ["&", "&&", "|", "||", ";", "}"];

/// Takes a text apart as a shell does: quotes, comments, and lines that are continued. Lines that are
/// not continued belong together too, since they were often copied from somewhere.
///
/// # Errors
/// The text is too long, a quote is open, or no QEMU is started in it.
pub fn of_text(text: &str) -> Result<Invocation, Unreadable> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Unreadable::TooLong);
    }
    if text.trim_start().starts_with('<') {
        return Err(Unreadable::IsXml);
    }
    let words = shlex::split(&text.replace("\r\n", "\n")).ok_or(Unreadable::OpenQuote)?;
    let mut found = of_words(&words)?;
    let is_variable = |word: &&String| word.contains("$(") || word.contains('`') || variable(word);
    found.unexpanded = words.iter().filter(is_variable).take(8).cloned().collect();
    Ok(found)
}

/// Takes the words of a process, as `/proc/PID/cmdline` has them.
///
/// # Errors
/// The program is no QEMU.
pub fn of_words(words: &[String]) -> Result<Invocation, Unreadable> {
    let at = words.iter().position(|word| is_qemu(name_of(word)));
    let at = at.or_else(|| words.iter().position(|word| is_short_name(name_of(word))));
    let (program, words) = match at.and_then(|at| words.split_at_checked(at)) {
        Some((_, [program, options @ ..])) => (Some(name_of(program).to_owned()), options),
        _ if words.first().is_some_and(|word| word.starts_with('-')) => (None, words),
        _ if words.first().is_some_and(|word| name_of(word) == "hvb") => {
            return Err(Unreadable::Hvb);
        }
        _ => return Err(Unreadable::NoQemu),
    };
    Ok(Invocation { program, options: options(words), unexpanded: Vec::new() })
}

/// The options among words up to the end of the command.
pub(crate) fn options(words: &[String]) -> OptionList {
    let mut found = OptionList::new();
    let mut words = words.iter().take_while(|word| !ends(word)).peekable();
    while let Some(word) = words.next() {
        // What is no option is the image of a disk.
        let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else { continue };
        let name = name.strip_prefix('-').unwrap_or(name);
        let takes_any = WITH_VALUE.contains(&name);
        let value = words.next_if(|next| takes_any || !next.starts_with('-'));
        found.push((name.to_owned(), value.cloned().unwrap_or_default()));
    }
    found
}

fn ends(word: &str) -> bool {
    ENDS.contains(&word)
        || word.starts_with('>')
        || word.starts_with("2>")
        || word.starts_with("&>")
}

/// The last component of a path.
fn name_of(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn is_qemu(name: &str) -> bool {
    // NixOS wraps programs as `.qemu-system-x86_64-wrapped`.
    let name = name.strip_prefix('.').unwrap_or(name);
    name.starts_with("qemu-system-") || name == "qemu-kvm"
}

/// Proxmox and others have QEMU as `kvm`.
fn is_short_name(name: &str) -> bool {
    name == "kvm" || name == "qemu"
}

/// Whether a word has `$name` or `${name}`.
fn variable(word: &str) -> bool {
    let mut after = word.split('$').skip(1);
    after.any(|rest| rest.starts_with(|c: char| c == '{' || c == '_' || c.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        of_text(text).unwrap().options
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn shells_quotes_comments_and_continued_lines_are_understood() {
        let text = "#!/bin/sh\r\n# my VM\r\nexec sudo /usr/bin/qemu-system-x86_64 \\\r\n  -m '4G' \\\n -append \"-x=1 y\" # boot\n  --enable-kvm -cpu host,\\\nkvm=off disk.img -S & echo";
        let expected = [
            pair("m", "4G"),
            pair("append", "-x=1 y"),
            pair("enable-kvm", ""),
            pair("cpu", "host,kvm=off"),
            pair("S", ""),
        ];
        assert_eq!(pairs(text), expected);
        assert_eq!(of_text(text).unwrap().program.as_deref(), Some("qemu-system-x86_64"));
    }

    #[test]
    fn the_program_is_found_wherever_it_is() {
        for (text, program) in [
            ("ExecStart=/usr/bin/qemu-system-x86_64 -S", "qemu-system-x86_64"),
            ("root 14422 1 99 12:04 ? 00:45:17 /usr/bin/kvm -id 100 -S", "kvm"),
            ("LC_ALL=C PATH=/bin /usr/libexec/qemu-kvm -name guest=kvm -S", "qemu-kvm"),
            ("taskset -c 0-3 .qemu-system-x86_64-wrapped -S", ".qemu-system-x86_64-wrapped"),
        ] {
            let found = of_text(text).unwrap();
            assert_eq!(found.program.as_deref(), Some(program));
            assert_eq!(found.options.last(), Some(&pair("S", "")));
        }
        assert_eq!(of_text("-m 1G").unwrap().program, None);
    }

    #[test]
    fn what_is_no_command_line_is_said() {
        assert_eq!(of_text("qemu-system-x86_64 -name 'x"), Err(Unreadable::OpenQuote));
        assert_eq!(of_text("ls -l"), Err(Unreadable::NoQemu));
        assert_eq!(of_text("\n<domain type='kvm'/>"), Err(Unreadable::IsXml));
        assert_eq!(of_text(""), Err(Unreadable::NoQemu));
        assert_eq!(of_text("/usr/bin/hvb run --kernel x"), Err(Unreadable::Hvb));
        assert_eq!(of_text(&" ".repeat(MAX_TEXT_BYTES + 1)), Err(Unreadable::TooLong));
    }

    #[test]
    fn words_for_the_shell_are_named() {
        let text = "qemu-system-x86_64 -m $RAM -name ${NAME} -smp $(nproc) -hda a$b -x 5$";
        assert_eq!(of_text(text).unwrap().unexpanded, ["$RAM", "${NAME}", "$(nproc)", "a$b"]);
    }
}
