#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::allow_attributes,
        reason = "a test may fail"
    )
)]
//! A balancer's figures over HTTP: metrics in OpenMetrics, JSON, and a page that shows them live.
//!
//! Nothing can be changed here. [`Socket::bind`] listens and [`Socket::serve`] serves, on one thread that
//! gives way to the balancer's: it looks at the balancer at most twice a second, whoever asks for what and
//! how often. A request comes and an answer is taken within a time, connections have a number, and one is
//! for one request.
//!
//! Without a [`Token`] it listens on the loopback interface only, and answers only requests for this host's
//! own names, so that a page of somebody else cannot read it through a browser on this host.

mod body;
mod cache;
mod gate;
mod guarded;
mod metrics;
mod page;
mod route;
mod server;
mod token;

pub use cache::Source;
pub use server::{Socket, Web, WebError};
pub use token::{Token, TokenError};
