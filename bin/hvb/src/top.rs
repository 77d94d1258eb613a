//! `hvb top`: the host and all machines, on a screen or as lines.

mod feed;
mod terminal;

use std::io::{self, IsTerminal};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use balance_top::{CSV_HEAD, Screen, Sort, csv};
use ratatui::crossterm;

use crate::report;
use crate::top_args::{SortArg, TopArgs};
use feed::Feed;

/// The columns of a text that goes to no terminal.
const COLUMNS: u16 = 120;

impl From<SortArg> for Sort {
    fn from(arg: SortArg) -> Self {
        match arg {
            SortArg::Name => Self::Name,
            SortArg::Status => Self::Status,
            SortArg::Pressure => Self::Pressure,
            SortArg::Assigned => Self::Assigned,
            SortArg::Demand => Self::Demand,
            SortArg::Rss => Self::Resident,
            SortArg::Age => Self::Age,
        }
    }
}

/// Shows what the balancer, or else the machines themselves tell.
pub(crate) fn run(args: TopArgs) -> Result<()> {
    let prints = args.once || args.json || args.csv;
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if !prints && !is_terminal {
        bail!("this is no terminal: use --once, --json or --csv");
    }
    let TopArgs { control, vms, sort, filter, once, json, csv, interval } = args;
    let mut feed = Feed::open(control, &vms)?;
    let screen = Screen::new(feed.source()).sorted_by(sort.into()).filtered_by(&filter);
    if !prints {
        return terminal::show(feed, screen);
    }
    feed.settle()?;
    if csv && !report::line_if_read(CSV_HEAD)? {
        return Ok(());
    }
    loop {
        let mut now = screen.clone();
        now.take(feed.status()?, 0);
        let is_read = match (json, csv) {
            (true, _) => report::line_if_read(&serde_json::to_string(&now.status())?)?,
            (_, true) => lines(&now)?,
            _ => {
                report::text(&now.text(0, columns()))?;
                true
            }
        };
        if once || !is_read {
            return Ok(());
        }
        thread::sleep(interval);
    }
}

/// Prints a line for each machine; whether somebody may read them.
fn lines(screen: &Screen) -> Result<bool> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for line in csv(&screen.status(), time.as_secs()) {
        if !report::line_if_read(&line)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn columns() -> u16 {
    match io::stdout().is_terminal() {
        true => crossterm::terminal::size().map_or(COLUMNS, |(columns, _)| columns),
        false => COLUMNS,
    }
}
