//! A listener whose clients cannot use up the daemon's descriptors: any user of this machine may connect to a port of its
//! loopback, and calls into the overlay need descriptors too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Most connections at a time. Who finds no room is hung up on.
const MOST: usize = 64;
/// How long a connection may last, asked on or not; whoever wants more connects again.
const LIFE: Duration = Duration::from_secs(60);

/// See the module.
pub struct Limited<L> {
    inner: L,
    room: Arc<Semaphore>,
}

impl<L> Limited<L> {
    /// On top of another one.
    pub fn new(inner: L) -> Limited<L> {
        Limited { inner, room: Arc::new(Semaphore::new(MOST)) }
    }
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Timed<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (io, address) = self.inner.accept().await;
            if let Ok(place) = Arc::clone(&self.room).try_acquire_owned() {
                return (Timed { io, end: Box::pin(sleep(LIFE)), _place: place }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A connection that ends.
pub struct Timed<I> {
    io: I,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<I> Timed<I> {
    fn has_ended(&mut self, context: &mut Context<'_>) -> bool {
        self.end.as_mut().poll(context).is_ready()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Timed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_ended(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Timed<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.has_ended(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::Router;
    use axum::routing::get;

    use super::*;

    #[test]
    fn many_silent_clients_take_no_more_than_their_share() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("tokio");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("bound");
        let address = listener.local_addr().expect("bound");
        let limited = Limited::new(listener);
        let room = Arc::clone(&limited.room);
        let router = Router::new().route("/", get(|| async { "here" }));
        runtime.spawn(async move { axum::serve(limited, router).await });
        let connect = || std::net::TcpStream::connect(address).expect("connected");
        let mut silent: Vec<_> = (0..MOST).map(|_| connect()).collect();
        while room.available_permits() > 0 {
            std::thread::yield_now();
        }
        let mut refused = connect();
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0, "it is hung up on");
        // One goes, another gets in.
        silent.pop();
        while room.available_permits() == 0 {
            std::thread::yield_now();
        }
        let mut served = connect();
        served.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asked");
        let mut text = String::new();
        served.read_to_string(&mut text).expect("answered");
        assert!(text.ends_with("here"), "{text}");
    }

    #[test]
    fn a_connection_ends() {
        use tokio::io::AsyncReadExt;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
        let error = runtime.block_on(async {
            let (ours, _theirs) = tokio::io::duplex(16);
            let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("room");
            let mut timed = Timed { io: ours, end: Box::pin(sleep(Duration::from_millis(1))), _place: place };
            timed.read_u8().await.expect_err("it waits for nobody")
        });
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
