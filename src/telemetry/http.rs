//! `/metrics` for Prometheus, `/healthz` for whoever watches the daemon, and a status page for people.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::journal::Journal;
use super::limited::Limited;
use super::sockets::OwnSocket;
use super::status::Status;
use super::{Observed, metrics, page};
use crate::config::MetricsListen;

/// A bound socket.
pub enum Listener {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A unix socket, of which the name is kept elsewhere.
    Unix(std::os::unix::net::UnixListener),
}

/// Binds; the error names the option. A unix socket's name goes with the second value.
pub fn bind(listen: &MetricsListen) -> Result<(Listener, Option<OwnSocket>), String> {
    match listen {
        MetricsListen::Tcp(address) => {
            let fail = |error: std::io::Error| format!("metrics={address}: {error}; give another port");
            let listener = std::net::TcpListener::bind(address).map_err(fail)?;
            listener.set_nonblocking(true).map_err(fail)?;
            Ok((Listener::Tcp(listener), None))
        }
        MetricsListen::Unix(path) => {
            let fail = |error: std::io::Error| format!("metrics=unix:{}: {error}; give another path", path.display());
            let mut socket = OwnSocket::bind(path).map_err(fail)?;
            Ok((Listener::Unix(socket.take().map_err(fail)?), Some(socket)))
        }
    }
}

#[derive(Clone)]
struct Served {
    observed: Observed,
    journal: Arc<Journal>,
}

/// Serves until the runtime ends.
pub async fn serve(listener: Listener, observed: Observed, journal: Arc<Journal>) {
    let router = Router::new()
        .route("/", get(status_page))
        .route("/style.css", get(style))
        .route("/metrics", get(scrape))
        .route("/healthz", get(health))
        .with_state(Served { observed, journal });
    let result = match listener {
        Listener::Tcp(listener) => match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => axum::serve(Limited::new(listener), router).await,
            Err(error) => Err(error),
        },
        Listener::Unix(listener) => match tokio::net::UnixListener::from_std(listener) {
            Ok(listener) => axum::serve(Limited::new(listener), router).await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = result {
        tracing::error!(%error, "metrics are no longer served");
    }
}

async fn scrape(State(served): State<Served>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics::render(&served.observed))
}

async fn health(State(served): State<Served>) -> (StatusCode, String) {
    match served.observed.watch.snapshot().state {
        "live" | "suspect" => (StatusCode::OK, "ok\n".into()),
        state => (StatusCode::SERVICE_UNAVAILABLE, format!("{state}\n")),
    }
}

/// For both files of the page: no browser is to keep them, or to take them for something else.
const CAREFUL: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

async fn status_page(State(served): State<Served>, Query(query): Query<HashMap<String, String>>) -> impl IntoResponse {
    let Served { observed, journal } = &served;
    let status = Status::of(observed, journal);
    let outages = journal.outages();
    let live = query.get("live").is_none_or(|live| live != "no");
    let view = page::View { status: &status, outages: &outages, known: observed.started, now: SystemTime::now(), live };
    let own = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, page::POLICY)];
    (CAREFUL, own, page::render(&view))
}

async fn style() -> impl IntoResponse {
    (CAREFUL, [(header::CONTENT_TYPE, "text/css; charset=utf-8")], page::STYLE)
}
