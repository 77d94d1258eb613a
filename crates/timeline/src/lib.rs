#![forbid(unsafe_code)]
//! Figures over time as a picture in SVG: panels one below the other, over the same time.

mod curve;

use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, ChartBuilder, Color, DrawingArea, IntoDrawingArea, LineSeries, PathElement, RGBColor,
    SVGBackend, SeriesLabelPosition, WHITE,
};

pub use curve::Curve;

const WIDTH: u32 = 1000;
const TITLE_HEIGHT: u32 = 40;
const FONT: &str = "sans-serif";

/// The colours of a panel's curves, in their order. They can be told apart by those who see no red or
/// no green.
const COLORS: [RGBColor; 6] = [
    BLACK,
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(150, 150, 150),
];

/// A picture.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// What it shows.
    pub title: String,
    /// What the seconds are counted from, as in "seconds since the start".
    pub time: String,
    /// Its parts, from the top.
    pub panels: Vec<Panel>,
}

/// A part of a picture.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// The unit of its figures.
    pub unit: String,
    /// Its scale begins at 0 and goes to this at least.
    pub top: f64,
    /// Its height in pixels.
    pub height: u32,
    /// Its curves, each with its name.
    pub curves: Vec<(String, Curve)>,
}

/// The picture cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the picture cannot be drawn: {0}")]
pub struct DrawError(String);

impl Timeline {
    /// Draws it.
    ///
    /// # Errors
    /// It is too large to be drawn.
    pub fn svg(&self) -> Result<String, DrawError> {
        let heights = self.panels.iter().map(|panel| panel.height);
        let height = heights.fold(TITLE_HEIGHT, u32::saturating_add);
        // Pixels are counted in `i32`.
        if i32::try_from(height).is_err() {
            return Err(DrawError(format!("{} panels are too many", self.panels.len())));
        }
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, (WIDTH, height)))
            .map_err(|error| DrawError(error.to_string()))?;
        Ok(svg)
    }

    fn draw(&self, backend: SVGBackend<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        let mut rest = area.titled(&self.title, (FONT, 20))?;
        let curves = || self.panels.iter().flat_map(|panel| &panel.curves);
        let end = curves().filter_map(|(_, curve)| curve.end()).fold(1.0, f64::max);
        for panel in &self.panels {
            let (area, below) = rest.split_vertically(panel.height);
            panel.draw(&area, end, &self.time)?;
            rest = below;
        }
        rest.present()?;
        Ok(())
    }
}

impl Panel {
    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        end: f64,
        time: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let tops = self.curves.iter().filter_map(|(_, curve)| curve.top());
        let top = tops.fold(self.top, f64::max);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .caption(&self.title, (FONT, 15))
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..end, 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .x_desc(time)
            .y_desc(&self.unit)
            .y_labels(usize::try_from(self.height / 30)?)
            .label_style((FONT, 11))
            .axis_desc_style((FONT, 11))
            .x_label_formatter(&|value| label(*value))
            .y_label_formatter(&|value| label(*value))
            .light_line_style(WHITE)
            .draw()?;
        for ((name, curve), color) in self.curves.iter().zip(COLORS.iter().cycle()) {
            let mut lines = curve.lines();
            chart
                .draw_series(LineSeries::new(lines.next().unwrap_or_default(), color))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
            for line in lines {
                chart.draw_series(LineSeries::new(line, color))?;
            }
        }
        let mut names = chart.configure_series_labels();
        names.position(SeriesLabelPosition::UpperLeft).label_font((FONT, 12));
        names.background_style(WHITE.mix(0.7)).draw()?;
        Ok(())
    }
}

/// A figure of a scale: the scale's steps are sums of fractions, so they have more digits than they mean.
fn label(value: f64) -> String {
    let rounded = (value * 1000.0).round() / 1000.0;
    rounded.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(title: &str, points: &[(f64, f64)]) -> Panel {
        let mut curve = Curve::default();
        points.iter().for_each(|(at, value)| curve.push(*at, Some(*value)));
        let curves = vec![("a <figure>".to_owned(), curve)];
        Panel { title: title.to_owned(), unit: "MiB".to_owned(), top: 1.0, height: 200, curves }
    }

    fn picture(panels: Vec<Panel>) -> String {
        let (title, time) = ("all & sundry".to_owned(), "seconds".to_owned());
        Timeline { title, time, panels }.svg().unwrap()
    }

    #[test]
    fn a_picture_has_all_names_and_its_text_is_no_markup() {
        let svg = picture(vec![panel("one", &[(0.0, 1.0), (2.0, 5.0)]), panel("two", &[])]);
        assert!(svg.contains("width=\"1000\" height=\"440\""));
        for text in ["all &amp; sundry", "one", "two", "a &lt;figure&gt;", "MiB", "seconds"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("<figure>"));
        assert!(svg.contains("<polyline"));
    }

    #[test]
    fn figures_of_a_scale_have_the_digits_that_they_mean() {
        assert_eq!([label(0.600_000_000_000_000_1), label(2000.0)], ["0.6", "2000"]);
    }

    #[test]
    fn nothing_is_a_picture_and_too_much_is_none() {
        assert!(picture(Vec::new()).ends_with("</svg>\n"));
        picture(vec![panel("one", &[(0.0, 0.0)])]);
        let mut large = panel("one", &[]);
        large.height = u32::MAX;
        let (title, time) = (String::new(), String::new());
        let error = Timeline { title, time, panels: vec![large] }.svg().unwrap_err();
        assert_eq!(error.to_string(), "the picture cannot be drawn: 1 panels are too many");
    }
}
