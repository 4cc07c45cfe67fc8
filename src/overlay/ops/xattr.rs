//! getxattr, listxattr, setxattr, removexattr.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{ReplyEmpty, ReplyXattr};
use nix::errno::Errno;

use super::names::reply_node;
use crate::backing::OpResult;
use crate::gate::{Class, Op};
use crate::overlay::asked::Asked;
use crate::overlay::convert::node_errno;
use crate::overlay::{Overlay, settle};

impl Overlay {
    /// FUSE_GETXATTR; size 0 asks for the length.
    pub fn getxattr(self: &Arc<Self>, asked: Asked, node: u64, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.submit(
            asked,
            Op::Getxattr,
            Class::Meta,
            move |overlay, context| {
                overlay.on_node(context, node, |tree, path| tree.get_xattr(path, &name), |file| file.get_xattr(&name))
            },
            move |overlay, result| overlay.reply_value(result, size, reply),
        );
    }

    /// FUSE_LISTXATTR.
    pub fn listxattr(self: &Arc<Self>, asked: Asked, node: u64, size: u32, reply: ReplyXattr) {
        let sees_all = asked.caller.uid == 0;
        self.submit(
            asked,
            Op::Listxattr,
            Class::Meta,
            move |overlay, context| {
                let all =
                    overlay.on_node(context, node, |tree, path| tree.list_xattr(path), |file| file.list_xattr())?;
                Ok(if sees_all { all } else { without_trusted(&all) })
            },
            move |overlay, result| overlay.reply_value(result, size, reply),
        );
    }

    /// FUSE_SETXATTR.
    pub fn setxattr(
        self: &Arc<Self>,
        asked: Asked,
        node: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.submit(
            asked,
            Op::Setxattr,
            Class::Meta,
            move |overlay, context| {
                // A write that came after security.capability would take it away again, one of a replay too.
                overlay.show(context, node)?;
                if name == CAPABILITY {
                    overlay.commit_before(context, node)?;
                }
                let again = settle::Again::new(context.in_doubt);
                let done = |now: OpResult<Vec<u8>>| Ok(now? == value);
                overlay.on_node(
                    context,
                    node,
                    |tree, path| {
                        let result = tree.set_xattr(path, &name, &value, flags);
                        again.settle(result, Errno::EEXIST, || done(tree.get_xattr(path, &name)))
                    },
                    |file| {
                        let result = file.set_xattr(&name, &value, flags);
                        again.settle(result, Errno::EEXIST, || done(file.get_xattr(&name)))
                    },
                )
            },
            |_, result| reply_node(result, reply),
        );
    }

    /// FUSE_REMOVEXATTR.
    pub fn removexattr(self: &Arc<Self>, asked: Asked, node: u64, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.submit(
            asked,
            Op::Removexattr,
            Class::Meta,
            move |overlay, context| {
                let again = settle::Again::new(context.in_doubt);
                overlay.on_node(
                    context,
                    node,
                    |tree, path| again.settle(tree.remove_xattr(path, &name), Errno::ENODATA, || Ok(true)),
                    |file| again.settle(file.remove_xattr(&name), Errno::ENODATA, || Ok(true)),
                )
            },
            |_, result| reply_node(result, reply),
        );
    }
}

/// What a write takes away (capabilities(7)).
const CAPABILITY: &str = "security.capability";

/// Names for others than root: those of `trusted.*` are shown to nobody else (xattr(7)). The backing shows them to steadfs.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let each = names.split_inclusive(|&byte| byte == 0);
    each.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}

impl Overlay {
    fn reply_value(&self, result: OpResult<Vec<u8>>, size: u32, reply: ReplyXattr) {
        match result {
            Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
            Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
            Ok(value) => reply.data(&value),
            // SFTP, which knows no owners either, has none at all. ENOSYS makes the kernel remember that (callers get
            // EOPNOTSUPP all the same); else it would ask for security.capability before every single write.
            Err(Errno::EOPNOTSUPP) if !self.traits.owners => reply.error(fuser::Errno::ENOSYS),
            Err(error) => reply.error(node_errno(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_names_are_for_root_alone() {
        assert_eq!(without_trusted(b"user.a\0trusted.b\0security.c\0"), b"user.a\0security.c\0");
        assert_eq!(without_trusted(b"trusted.b\0"), b"");
        assert_eq!(without_trusted(b""), b"");
    }
}
