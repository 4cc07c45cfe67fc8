//! One call: answered exactly once, run as often as it takes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::{Class, Context, Op, Terms, policy};
use crate::backing::OpResult;

/// The answer that is still owed. Whoever takes the reply first gives it; everybody else finds nothing.
struct Owed<T, R> {
    reply: Mutex<Option<R>>,
    answered: Arc<AtomicBool>,
    _value: std::marker::PhantomData<fn(T)>,
}

impl<T, R: FnOnce(OpResult<T>)> Owed<T, R> {
    fn give(&self, result: OpResult<T>) -> bool {
        // The lock is released before the reply runs: replying writes to the kernel.
        let reply = self.reply.lock().take();
        // Before the caller can know and send its next call: work that is still under way must not come after that.
        self.answered.store(true, SeqCst);
        match reply {
            Some(reply) => {
                reply(result);
                true
            }
            None => false,
        }
    }
}

type Work = Box<dyn FnMut(&Context<'_>) -> Result<bool, Errno> + Send>;
type Fail = Box<dyn Fn(Errno) -> bool + Send + Sync>;

/// A call with its types erased.
pub(super) struct Call {
    pub op: Op,
    pub class: Class,
    /// Payload of a read or write.
    pub bytes: u64,
    pub arrived: Instant,
    /// Its own deadline, counted from `arrived`.
    pub limit: Duration,
    /// See [`Context::in_doubt`].
    pub in_doubt: AtomicBool,
    /// The gate's own: nobody waits for an answer, and it is not counted.
    pub internal: bool,
    answered: Arc<AtomicBool>,
    work: Mutex<Option<Work>>,
    fail: Fail,
}

/// How one run of a call's work ended.
pub(super) enum Run {
    /// It succeeded, and the answer was given just now.
    Answered,
    /// It ended in time or not, but somebody else had given the answer.
    TooLate,
    /// It failed; nobody has been told yet.
    Failed(Errno),
}

impl Call {
    pub fn new<T: Send + 'static>(
        terms: Terms,
        limit: Duration,
        work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) -> Arc<Call> {
        Arc::new(Call::build(terms, limit, work, reply))
    }

    /// A question that the server answers after everything that was sent before it. Late like data: it waits behind data.
    pub fn barrier(limit: Duration) -> Arc<Call> {
        let work = |context: &Context<'_>| match context.generation.probe() {
            Err(errno) if policy::raises_doubt(errno) => Err(errno),
            // A server that says no has answered.
            _ => Ok(()),
        };
        Arc::new(Call { internal: true, ..Call::build(Terms::of(Op::Statfs, Class::Data), limit, work, drop) })
    }

    fn build<T: Send + 'static>(
        terms: Terms,
        limit: Duration,
        mut work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) -> Call {
        let answered = Arc::new(AtomicBool::new(false));
        let (reply, seen) = (Mutex::new(Some(reply)), Arc::clone(&answered));
        let owed = Arc::new(Owed { reply, answered: seen, _value: std::marker::PhantomData });
        let for_fail = Arc::clone(&owed);
        Call {
            op: terms.op,
            class: terms.class,
            bytes: terms.bytes,
            arrived: Instant::now(),
            limit,
            in_doubt: AtomicBool::new(terms.in_doubt),
            internal: false,
            answered,
            work: Mutex::new(Some(Box::new(move |context| work(context).map(|value| owed.give(Ok(value)))))),
            fail: Box::new(move |errno| for_fail.give(Err(errno))),
        }
    }

    /// True when the answer has been given, or is being given.
    pub fn is_answered(&self) -> bool {
        self.answered.load(SeqCst)
    }

    /// Answers with an error; false if somebody was first.
    pub fn fail(&self, errno: Errno) -> bool {
        (self.fail)(errno)
    }

    /// Runs the work once, in the calling thread. A panic counts as EIO, so that the caller is answered.
    pub fn run(&self, context: &Context<'_>) -> Run {
        let Some(mut work) = self.work.lock().take() else { return Run::TooLate };
        let result = catch_unwind(AssertUnwindSafe(|| work(context))).unwrap_or_else(|_| {
            tracing::error!(op = self.op.name(), "a call panicked; it is answered with EIO");
            Err(Errno::EIO)
        });
        match result {
            Ok(true) => Run::Answered,
            Ok(false) => Run::TooLate,
            Err(errno) => {
                *self.work.lock() = Some(work);
                Run::Failed(errno)
            }
        }
    }
}
