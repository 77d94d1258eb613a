//! A curve of any number of points in bounded memory.

/// Twice as many pieces as the picture has pixels across.
const MAX_PIECES: usize = 2000;

/// The width of a piece at first, in seconds.
const FIRST_WIDTH: f64 = 0.01;

/// A figure over time. Of points closer than a pixel, the lowest and the highest are kept.
#[derive(Clone, Debug)]
pub struct Curve {
    width: f64,
    pieces: Vec<Piece>,
    is_broken: bool,
}

/// What the curve did within one piece of time.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: f64,
    first: f64,
    low: f64,
    high: f64,
    last: f64,
    /// Nothing is known between this piece and the one before.
    is_start: bool,
}

impl Default for Curve {
    fn default() -> Self {
        Self { width: FIRST_WIDTH, pieces: Vec::new(), is_broken: true }
    }
}

impl Curve {
    /// Adds a point, at a time in seconds that is not before that of the last one. `None` is a gap.
    pub fn push(&mut self, at: f64, value: Option<f64>) {
        let Some(value) = value.filter(|value| value.is_finite() && at.is_finite()) else {
            self.is_broken = true;
            return;
        };
        let is_start = std::mem::take(&mut self.is_broken);
        let (first, low, high, last) = (value, value, value, value);
        let piece = Piece { at, first, low, high, last, is_start };
        add(&mut self.pieces, piece, self.width);
        while self.pieces.len() > MAX_PIECES {
            self.width *= 2.0;
            let pieces = std::mem::take(&mut self.pieces);
            pieces.into_iter().for_each(|piece| add(&mut self.pieces, piece, self.width));
        }
    }

    /// The time of the last point.
    pub(crate) fn end(&self) -> Option<f64> {
        self.pieces.last().map(|piece| piece.at)
    }

    /// Whether it has no point.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The highest value.
    pub(crate) fn top(&self) -> Option<f64> {
        self.pieces.iter().map(|piece| piece.high).reduce(f64::max)
    }

    /// The parts between the gaps, each as times and values.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Vec<(f64, f64)>> {
        self.pieces.chunk_by(|_, next| !next.is_start).map(|pieces| {
            let points = pieces.iter().flat_map(|piece| {
                [piece.first, piece.low, piece.high, piece.last].map(|value| (piece.at, value))
            });
            let mut points: Vec<(f64, f64)> = points.collect();
            points.dedup();
            points
        })
    }
}

/// Adds a piece, to the last one if both are within the same `width`.
fn add(pieces: &mut Vec<Piece>, piece: Piece, width: f64) {
    let slot = |at: f64| (at / width).floor();
    match pieces.last_mut().filter(|last| slot(last.at) == slot(piece.at)) {
        Some(last) => {
            last.low = last.low.min(piece.low);
            last.high = last.high.max(piece.high);
            last.last = piece.last;
        }
        None => pieces.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: impl IntoIterator<Item = (f64, Option<f64>)>) -> Curve {
        let mut curve = Curve::default();
        points.into_iter().for_each(|(at, value)| curve.push(at, value));
        curve
    }

    #[test]
    fn few_points_are_kept_as_they_are_and_gaps_stay_open() {
        let points = [(0.0, Some(1.0)), (1.0, Some(3.0)), (2.0, None), (3.0, Some(2.0))];
        let lines: Vec<_> = curve(points).lines().collect();
        assert_eq!(lines, [vec![(0.0, 1.0), (1.0, 3.0)], vec![(3.0, 2.0)]]);
        assert_eq!(curve([(0.0, None), (1.0, Some(f64::NAN))]).lines().count(), 0);
    }

    #[test]
    fn of_many_points_the_peaks_stay_and_memory_is_bounded() {
        let value = |n: u32| match n {
            123_456 => 9.0,
            123_457 => -9.0,
            _ => f64::from(n % 2),
        };
        let curve = curve((0..1_000_000).map(|n| (f64::from(n), Some(value(n)))));
        assert!((MAX_PIECES / 4..=MAX_PIECES).contains(&curve.pieces.len()));
        let points: Vec<_> = curve.lines().flatten().collect();
        let at = |value| points.iter().find(|point| point.1 == value).unwrap().0;
        for peak in [9.0, -9.0] {
            assert!((at(peak) - 123_456.0).abs() < 2.0 * curve.width, "{peak}");
        }
        assert_eq!(points.last().unwrap().1, 1.0);
        assert_eq!(curve.top(), Some(9.0));
    }
}
