//! A report as text.

use std::fmt;

use crate::finding::{Finding, Guests, Level, Remedy, Report, Section};

/// The width to which sentences are broken.
const WIDTH: usize = 96;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, section) in self.sections.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            section.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for finding in &self.findings {
            finding.fmt(f)?;
        }
        let all = self.findings.iter();
        let stops = all.clone().filter(|finding| finding.level == Level::Stops).count();
        let limits = all.filter(|finding| finding.level == Level::Limits).count();
        let things =
            |count| if count == 1 { "1 thing".to_owned() } else { format!("{count} things") };
        match (stops, limits) {
            (0, 0) => writeln!(f, "  Nothing stops Dynamic Memory.")?,
            (0, limits) => {
                writeln!(f, "  Nothing stops Dynamic Memory; {} limit it.", things(limits))?
            }
            (stops, _) => {
                writeln!(f, "  Dynamic Memory does not work: see {} above.", things(stops))?
            }
        }
        if !self.together.is_empty() {
            writeln!(f, "\n  All changes together:")?;
            self.together.iter().try_for_each(|remedy| write_remedy(f, remedy, "  "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guests = match self.guests {
            Guests::All => "",
            Guests::Linux => " (Linux guests)",
            Guests::Windows => " (Windows guests)",
        };
        let what = format!("{}{guests}", self.what);
        for (at, line) in lines(&what, WIDTH - 11).into_iter().enumerate() {
            let word = if at == 0 { self.level.word() } else { "" };
            writeln!(f, "  {word:<8} {line}")?;
        }
        for line in lines(&self.why, WIDTH - 11) {
            writeln!(f, "           {line}")?;
        }
        self.remedies.iter().try_for_each(|remedy| write_remedy(f, remedy, "         "))
    }
}

fn write_remedy(f: &mut fmt::Formatter<'_>, remedy: &Remedy, indent: &str) -> fmt::Result {
    writeln!(f, "{indent}  {}:", remedy.how)?;
    // Never broken: it is to be copied.
    remedy.text.lines().try_for_each(|line| writeln!(f, "{indent}      {line}"))
}

/// Breaks a sentence into lines at spaces.
fn lines(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
