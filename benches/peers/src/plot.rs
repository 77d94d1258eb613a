//! The summary as a picture: a bar for each peer and row, on logarithmic scales.

use std::path::Path;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::summary::{Row, Spread, Unit};
use e2e::peer::Peer;

const SIZE: (u32, u32) = (1100, 900);
const BLUE: RGBColor = RGBColor(31, 119, 180);
const ORANGE: RGBColor = RGBColor(255, 127, 14);
const GREY: RGBColor = RGBColor(140, 140, 140);

/// Draws the times and writes them to an SVG file.
///
/// # Errors
///
/// The file cannot be written.
pub(crate) fn draw(file: &Path, rows: &[Row], peers: &[Peer]) -> Result<()> {
    let picture = SVGBackend::new(file, SIZE).into_drawing_area();
    picture.fill(&WHITE)?;
    let (wall, cpu) = picture.split_vertically(SIZE.1 / 2);
    for (area, unit, title) in [
        (wall, Unit::Wall, "Seconds until done (median; lines: least to most)"),
        (cpu, Unit::Cpu, "Seconds of processor time"),
    ] {
        let of_unit: Vec<&Row> =
            rows.iter().filter(|r| r.unit == unit && !r.peers.is_empty()).collect();
        if !of_unit.is_empty() {
            chart(&area, title, &of_unit, peers)?;
        }
    }
    picture.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn chart(area: &Area<'_>, title: &str, rows: &[&Row], peers: &[Peer]) -> Result<()> {
    let (bottom, top) = bounds(rows);
    let groups = rows.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(64)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..groups, (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(RGBColor(240, 240, 240))
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    label_groups(chart.plotting_area(), area, rows)?;
    let width = 0.8 / peers.len() as f64;
    for (n, peer) in peers.iter().enumerate() {
        let left = |group: usize| group as f64 + 0.1 + n as f64 * width;
        let spreads = rows.iter().enumerate();
        let spreads = spreads.filter_map(|(group, row)| Some((left(group), row.peers.get(peer)?)));
        let bars =
            spreads.clone().map(|(x, s)| bar(x, width, s.median.max(bottom), bottom, color(*peer)));
        chart
            .draw_series(bars)?
            .label(peer.name())
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color(*peer).filled()));
        chart.draw_series(spreads.clone().map(|(x, s)| range(x + width / 2.0, s, bottom)))?;
        chart.draw_series(spreads.map(|(x, s)| figure(x, s, bottom)))?;
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperRight).label_font(("sans-serif", 13));
    legend.background_style(WHITE.mix(0.8)).border_style(GREY).draw()?;
    Ok(())
}

/// The bounds of the decades that contain all values.
fn bounds(rows: &[&Row]) -> (f64, f64) {
    let spreads = || rows.iter().flat_map(|row| row.peers.values());
    let least = spreads().map(|s| s.least).filter(|v| *v > 0.0).fold(1.0, f64::min);
    let most = spreads().map(|s| s.most).fold(0.01, f64::max);
    (10f64.powf(least.log10().floor()), 10f64.powf(most.log10().ceil()) * 3.0)
}

fn color(peer: Peer) -> RGBColor {
    match peer {
        Peer::Hvb => BLUE,
        Peer::HvBalloon => ORANGE,
        Peer::VirtioBalloon | Peer::Microvm => GREY,
    }
}

fn bar(x: f64, width: f64, top: f64, bottom: f64, color: RGBColor) -> Rectangle<(f64, f64)> {
    Rectangle::new([(x, bottom), (x + width * 0.94, top)], color.filled())
}

fn range(x: f64, spread: &Spread, bottom: f64) -> PathElement<(f64, f64)> {
    PathElement::new(vec![(x, spread.least.max(bottom)), (x, spread.most.max(bottom))], BLACK)
}

fn figure(x: f64, spread: &Spread, bottom: f64) -> Text<'static, (f64, f64), String> {
    let text = match spread.median {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    };
    Text::new(text, (x, spread.most.max(bottom) * 1.5), ("sans-serif", 11))
}

/// Writes the name of each row under its bars, broken into lines.
fn label_groups<Y: plotters::coord::ranged1d::Ranged<ValueType = f64>>(
    plot: &DrawingArea<SVGBackend<'_>, Cartesian2d<RangedCoordf64, Y>>,
    area: &Area<'_>,
    rows: &[&Row],
) -> Result<()> {
    let (left, top) = area.get_base_pixel();
    let (xs, ys) = plot.get_pixel_range();
    let width = f64::from(xs.end - xs.start) / rows.len() as f64;
    for (n, row) in rows.iter().enumerate() {
        let mut words = String::new();
        let mut lines = Vec::new();
        for word in row.name.split(' ') {
            if words.len() + word.len() > 11 && !words.is_empty() {
                lines.push(std::mem::take(&mut words));
            }
            words.push_str(word);
            words.push(' ');
        }
        lines.push(words);
        for (line, text) in lines.iter().enumerate() {
            let x = f64::from(xs.start) + (n as f64 + 0.1) * width;
            let y = ys.end + 6 + 14 * i32::try_from(line)?;
            // The width of the picture fits into an i32.
            #[expect(clippy::cast_possible_truncation, reason = "a place in the picture")]
            let at = (x as i32 - left, y - top);
            area.draw(&Text::new(text.trim_end().to_owned(), at, ("sans-serif", 12)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_names_rows_and_peers_and_survives_nothing_and_zero() {
        let spread = Spread { median: 0.5, least: 0.25, most: 40.0 };
        let zero = Spread { median: 0.0, least: 0.0, most: 0.0 };
        let row = |name, unit| Row {
            name,
            unit,
            peers: [(Peer::Hvb, spread), (Peer::HvBalloon, zero)].into(),
            times_hvb: [].into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plot.svg");
        let rows = [row("shrink", Unit::Wall), row("return", Unit::Wall), row("shrink", Unit::Cpu)];
        draw(&file, &rows, &[Peer::Hvb, Peer::HvBalloon]).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        for text in ["shrink", "return", "hvb", "QEMU hv-balloon", "0.500"] {
            assert!(svg.contains(text), "{text}");
        }
        draw(&file, &[], &[Peer::Hvb]).unwrap();
    }
}
