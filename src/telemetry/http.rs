//! `/metrics` for Prometheus and `/healthz` for whoever watches the daemon.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::limited::Limited;
use super::sockets::OwnSocket;
use super::{Observed, metrics};
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

/// Serves until the runtime ends.
pub async fn serve(listener: Listener, observed: Observed) {
    let router = Router::new().route("/metrics", get(scrape)).route("/healthz", get(health)).with_state(observed);
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

async fn scrape(State(observed): State<Observed>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics::render(&observed))
}

async fn health(State(observed): State<Observed>) -> (StatusCode, String) {
    match observed.watch.snapshot().state {
        "live" | "suspect" => (StatusCode::OK, "ok\n".into()),
        state => (StatusCode::SERVICE_UNAVAILABLE, format!("{state}\n")),
    }
}
