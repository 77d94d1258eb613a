//! The thread that serves.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

use crate::body::Body;
use crate::cache::{Cache, Source};
use crate::gate::{Gate, Refusal, is_loopback};
use crate::guarded::{Guarded, Limits};
use crate::metrics;
use crate::page;
use crate::route::{NoRoute, Route, route};
use crate::token::Token;

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// The most of them that may be streams of events, so that there is always room for others.
const MAX_STREAMS: usize = 32;

/// The longest request line with its headers, and the most headers.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// Events come this often.
const PERIOD: Duration = Duration::from_secs(1);

/// Events that wait for a client; those that come when it has not taken these are left out.
const WAITING: usize = 2;

/// How long an accept that failed waits: there are no descriptors, and there may be some later.
const PAUSE: Duration = Duration::from_millis(100);

/// How much this thread gives way to the others of its process and its host.
const NICE: i32 = 10;

const LIMITS: Limits = Limits { request: Duration::from_secs(5), taken: Duration::from_secs(20) };

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Other hosts can connect, and there is no token.
    #[error(
        "{0} can be reached from other hosts: give --listen-token-file, or an address such as 127.0.0.1:{port}",
        port = .0.port()
    )]
    Open(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// There is no thread.
    #[error("cannot start the thread that serves: {0}")]
    Thread(io::Error),
}

/// A socket that listens, with nobody to serve it yet.
#[derive(Debug)]
pub struct Socket {
    listener: TcpListener,
    address: SocketAddr,
    gate: Gate,
}

/// The server. Dropping it ends it.
#[derive(Debug)]
pub struct Web {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Socket {
    /// Listens. Without a token only on the loopback interface.
    ///
    /// # Errors
    /// There is no token and other hosts could connect, or the address cannot be had.
    pub fn bind(address: SocketAddr, token: Option<Token>) -> Result<Self, WebError> {
        let gate = match token {
            Some(token) => Gate::Token(token),
            None if is_loopback(address.ip()) => Gate::Local,
            None => return Err(WebError::Open(address)),
        };
        let fail = |source| WebError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address, gate })
    }

    /// Where it listens: port 0 has become one that was free.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves what the source tells, on a thread of its own.
    ///
    /// # Errors
    /// There is no thread, or what the thread needs.
    pub fn serve(self, source: impl Source + Send + 'static) -> Result<Web, WebError> {
        self.serve_within(source, LIMITS)
    }

    fn serve_within(
        self,
        source: impl Source + Send + 'static,
        limits: Limits,
    ) -> Result<Web, WebError> {
        let Self { listener, address, gate } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(WebError::Thread)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(WebError::Thread)?
        };
        let (end, ended) = oneshot::channel();
        let work = move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!("the thread that serves does not give way: {error}");
            }
            let shared = Rc::new(Shared::new(Box::new(source), gate, limits));
            let tasks = LocalSet::new();
            tasks.spawn_local(Rc::clone(&shared).tick());
            tasks.spawn_local(shared.accept(listener));
            // The sender is never used: it is dropped at the end.
            let _ = tasks.block_on(&runtime, ended);
        };
        tracing::info!("serving http://{address}/");
        let thread = Builder::new().name("web".to_owned()).spawn(work).map_err(WebError::Thread)?;
        Ok(Web { address, end: Some(end), thread: Some(thread) })
    }
}

impl Web {
    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// What the tasks of the thread share.
struct Shared {
    cache: RefCell<Cache>,
    gate: Gate,
    limits: Limits,
    streams: RefCell<Vec<mpsc::Sender<Bytes>>>,
}

impl Shared {
    fn new(source: Box<dyn Source>, gate: Gate, limits: Limits) -> Self {
        let cache = RefCell::new(Cache::new(source));
        Self { cache, gate, limits, streams: RefCell::default() }
    }

    /// Takes connections in, as many as there may be.
    async fn accept(self: Rc<Self>, listener: tokio::net::TcpListener) {
        // Each connection holds a copy.
        let places = Rc::new(());
        loop {
            match listener.accept().await {
                Ok((stream, _)) if Rc::strong_count(&places) <= MAX_CONNECTIONS => {
                    let (shared, place) = (Rc::clone(&self), Rc::clone(&places));
                    spawn_local(async move {
                        shared.serve(stream).await;
                        drop(place);
                    });
                }
                Ok((stream, _)) => turn_away(&stream),
                Err(error) => {
                    tracing::debug!("no connection was accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves one request. A connection is for no more, so that none waits for a client's next.
    async fn serve(self: Rc<Self>, stream: TcpStream) {
        let stream = Guarded::new(stream, self.limits);
        let is_asked = Rc::clone(&stream.is_asked);
        let service = service_fn(move |request: Request<Incoming>| {
            is_asked.set(true);
            let answer = self.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut server = http1::Builder::new();
        server
            .keep_alive(false)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEADER_BYTES)
            // The connection has its own.
            .header_read_timeout(None);
        if let Err(error) = server.serve_connection(stream, service).await {
            tracing::debug!("a client was not served: {error}");
        }
    }

    fn answer<T>(&self, request: &Request<T>) -> Response<Body> {
        let mut response = match self.gate.check(request.headers()) {
            Ok(()) => self.serve_route(request),
            Err(refusal) => refuse(refusal),
        };
        let fixed: [(HeaderName, &'static str); 5] = [
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, page::POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ];
        for (name, value) in fixed {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn serve_route<T>(&self, request: &Request<T>) -> Response<Body> {
        const JSON: &str = "application/json";
        let now = Instant::now();
        let uri = request.uri();
        let (kind, body) = match route(request.method(), uri.path(), uri.query()) {
            Ok(Route::Page) => {
                ("text/html; charset=utf-8", Bytes::from_static(page::PAGE.as_bytes()))
            }
            Ok(Route::Metrics) => (metrics::CONTENT_TYPE, self.cache.borrow_mut().metrics(now)),
            Ok(Route::Vms) => (JSON, self.cache.borrow_mut().vms(now)),
            Ok(Route::Decisions { after }) => (JSON, self.cache.borrow_mut().decisions(now, after)),
            Ok(Route::Events) => return self.stream(now),
            Err(reason) => return no_route(reason),
        };
        with_type(kind, Body::of(body))
    }

    /// A stream of events, of which the first comes at once.
    fn stream(&self, now: Instant) -> Response<Body> {
        let mut streams = self.streams.borrow_mut();
        streams.retain(|stream| !stream.is_closed());
        if streams.len() >= MAX_STREAMS {
            let text = format!("{MAX_STREAMS} clients have streams already: close some\n");
            return text_with(StatusCode::SERVICE_UNAVAILABLE, text);
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        // There is room in a channel that is new.
        let _ = sender.try_send(self.cache.borrow_mut().event(now));
        streams.push(sender);
        with_type("text/event-stream", Body::Stream(receiver))
    }

    /// Sends events, if there is anybody to take them.
    async fn tick(self: Rc<Self>) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.send();
        }
    }

    fn send(&self) {
        let mut streams = self.streams.borrow_mut();
        streams.retain(|stream| !stream.is_closed());
        if streams.is_empty() {
            return;
        }
        let event = self.cache.borrow_mut().event(Instant::now());
        for stream in streams.iter() {
            // Who has not taken the last ones gets a newer one later, or is cut off by its connection.
            let _ = stream.try_send(event.clone());
        }
    }
}

/// Says why nobody serves this client.
fn turn_away(stream: &TcpStream) {
    const TEXT: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // A socket that is new takes this; if not, its end says enough.
    let _ = stream.try_write(TEXT);
}

fn with_type(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text_with(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = with_type("text/plain; charset=utf-8", Body::of(text));
    *response.status_mut() = status;
    response
}

fn refuse(refusal: Refusal) -> Response<Body> {
    let status = match refusal {
        Refusal::Token => StatusCode::UNAUTHORIZED,
        Refusal::Host | Refusal::Origin => StatusCode::FORBIDDEN,
    };
    let mut response = text_with(status, refusal.text());
    if refusal == Refusal::Token {
        let ask = HeaderValue::from_static("Basic realm=\"hvb balance\", charset=\"UTF-8\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
    }
    response
}

fn no_route(reason: NoRoute) -> Response<Body> {
    let status = match reason {
        NoRoute::Method => StatusCode::METHOD_NOT_ALLOWED,
        NoRoute::Path => StatusCode::NOT_FOUND,
        NoRoute::Query => StatusCode::BAD_REQUEST,
    };
    let mut response = text_with(status, reason.text());
    if reason == NoRoute::Method {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
pub(crate) mod tests;
