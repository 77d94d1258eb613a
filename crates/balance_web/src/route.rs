//! What a request asks for.

use hyper::Method;

/// A thing that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Page,
    Metrics,
    Vms,
    /// The actions with a number greater than this.
    Decisions {
        after: u64,
    },
    Events,
}

/// Why nothing is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    Method,
    Path,
    Query,
}

impl NoRoute {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Method => "only GET and HEAD are served: nothing can be changed here\n",
            Self::Path => {
                "no such page: there are /, /metrics, /api/v1/vms, /api/v1/decisions and /api/v1/events\n"
            }
            Self::Query => "only /api/v1/decisions?after=NUMBER takes a question\n",
        }
    }
}

/// What a method, a path and a query ask for.
pub(crate) fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Route, NoRoute> {
    let route = match path {
        "/" => Route::Page,
        "/metrics" => Route::Metrics,
        "/api/v1/vms" => Route::Vms,
        "/api/v1/decisions" => Route::Decisions { after: 0 },
        "/api/v1/events" => Route::Events,
        _ => return Err(NoRoute::Path),
    };
    if method != Method::GET && method != Method::HEAD {
        return Err(NoRoute::Method);
    }
    match (route, query.filter(|query| !query.is_empty())) {
        (route, None) => Ok(route),
        (Route::Decisions { .. }, Some(query)) => {
            let after = query.strip_prefix("after=").ok_or(NoRoute::Query)?;
            let is_number = after.bytes().all(|byte| byte.is_ascii_digit());
            let after = after.parse().ok().filter(|_| is_number).ok_or(NoRoute::Query)?;
            Ok(Route::Decisions { after })
        }
        // What scrapes may add questions of its own.
        (Route::Metrics | Route::Page, Some(_)) => Ok(route),
        (_, Some(_)) => Err(NoRoute::Query),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str, query: Option<&str>) -> Result<Route, NoRoute> {
        route(&Method::GET, path, query)
    }

    #[test]
    fn only_what_is_there_is_served() {
        assert_eq!(get("/", None), Ok(Route::Page));
        assert_eq!(get("/metrics", Some("x=y")), Ok(Route::Metrics));
        assert_eq!(get("/api/v1/vms", Some("")), Ok(Route::Vms));
        assert_eq!(get("/api/v1/events", None), Ok(Route::Events));
        for path in
            ["", "//", "/metrics/", "/%6detrics", "/../metrics", "/api", "/api/v1/vms/db", "*"]
        {
            assert_eq!(get(path, None), Err(NoRoute::Path), "{path}");
        }
        assert_eq!(route(&Method::HEAD, "/", None), Ok(Route::Page));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            assert_eq!(route(&method, "/", None), Err(NoRoute::Method));
        }
    }

    #[test]
    fn a_question_is_a_number_or_refused() {
        let ask = |query| get("/api/v1/decisions", Some(query));
        assert_eq!(get("/api/v1/decisions", None), Ok(Route::Decisions { after: 0 }));
        assert_eq!(ask("after=7"), Ok(Route::Decisions { after: 7 }));
        assert_eq!(ask("after=18446744073709551615"), Ok(Route::Decisions { after: u64::MAX }));
        for query in [
            "after=",
            "after=-1",
            "after=+1",
            "after=x",
            "after=18446744073709551616",
            "x",
            "after=1&x=2",
            "&after=1",
            "after=%31",
        ] {
            assert_eq!(ask(query), Err(NoRoute::Query), "{query}");
        }
        assert_eq!(get("/api/v1/vms", Some("after=1")), Err(NoRoute::Query));
    }
}
