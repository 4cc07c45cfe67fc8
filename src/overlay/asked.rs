//! A request of the kernel's while it is unanswered: who asks, and what a successor would have to know of it.

use std::sync::Arc;

use fuser::Request;

use super::Overlay;
use crate::gate::Op;
use crate::handover::Memory;
use crate::handover::slots::{Entered, RESENT};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// fsuid.
    pub uid: u32,
    /// fsgid.
    pub gid: u32,
}

/// See the module. It is in flight until this is dropped, which is to happen right after the answer.
#[derive(Debug)]
pub struct Asked {
    /// Who asks.
    pub caller: Caller,
    /// Its number.
    pub unique: u64,
    entered: Option<(Arc<Memory>, Entered)>,
}

impl Asked {
    /// A call of steadfs's own, which nobody waits for.
    pub fn internal() -> Asked {
        Asked { caller: Caller { uid: 0, gid: 0 }, unique: 0, entered: None }
    }

    /// True if a steadfs has died over it: what it asks for may have been done.
    pub fn again(&self) -> bool {
        self.unique & RESENT != 0
    }

    /// True if it has seen so many deaths that it is taken for their reason.
    pub fn is_poison(&self) -> bool {
        self.entered.as_ref().is_some_and(|(_, entered)| entered.is_poison())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some((memory, entered)) = self.entered.take() {
            memory.requests().leave(entered);
        }
    }
}

impl Overlay {
    /// A request that needs no answer arrives.
    pub(super) fn forgets(&self, request: &Request) {
        if let Some(memory) = self.notes.memory() {
            memory.requests().saw(request.unique().0);
        }
    }

    /// A request arrives. One that the kernel sends again had no answer, so what that would have granted is taken back.
    pub(super) fn asked(self: &Arc<Self>, request: &Request, op: Op, node: u64) -> Asked {
        let unique = request.unique().0;
        self.resending.read(unique);
        let memory = self.notes.memory();
        let entered = memory.map(|memory| (Arc::clone(memory), memory.requests().enter(unique, op.opcode(), node)));
        if unique & RESENT != 0 {
            self.take_back(unique);
        }
        Asked { caller: Caller { uid: request.uid(), gid: request.gid() }, unique, entered }
    }
}
