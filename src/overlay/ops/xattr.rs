//! getxattr, listxattr, setxattr, removexattr.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{ReplyEmpty, ReplyXattr};
use nix::errno::Errno;

use super::names::reply_node;
use super::ownership::is_acl;
use crate::backing::OpResult;
use crate::gate::policy::raises_doubt;
use crate::gate::{Class, Op};
use crate::overlay::asked::Asked;
use crate::overlay::convert::node_errno;
use crate::overlay::{Overlay, settle};

/// Where capabilities of a program are kept (capabilities(7)).
const CAPABILITY: &str = "security.capability";

impl Overlay {
    /// FUSE_GETXATTR; size 0 asks for the length.
    pub fn getxattr(self: &Arc<Self>, asked: Asked, node: u64, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.submit(
            asked,
            Op::Getxattr,
            Class::Meta,
            move |overlay, context| {
                if overlay.hides_acl(&name) {
                    return Err(Errno::ENODATA);
                }
                let result = overlay.on_node(
                    context,
                    node,
                    |tree, path| tree.get_xattr(path, &name),
                    |file| file.get_xattr(&name),
                );
                match result {
                    Err(error) if overlay.has_owners() && is_acl(&name) && overlay.has_no_acl(node, error) => {
                        Err(Errno::ENODATA)
                    }
                    result => result,
                }
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
        if self.is_not_to_be_set(name) {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        }
        let (name, value) = (name.to_owned(), value.to_owned());
        // A write that came after it would take it away again.
        let first = self.first(node, name == CAPABILITY);
        self.submit(
            asked,
            Op::Setxattr,
            first.class(),
            move |overlay, context| {
                overlay.commit_first(context, &first)?;
                overlay.show(context, node)?;
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
        if self.is_not_to_be_set(name) {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        }
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

/// Names for others than root: those of `trusted.*` are shown to nobody else (xattr(7)). The backing shows them to steadfs.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let each = names.split_inclusive(|&byte| byte == 0);
    each.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}

impl Overlay {
    /// What an error says of a node's ACL: that there is none. Any other error the kernel tells whoever wanted to pass
    /// (check_acl of its fs/namei.c), and EOPNOTSUPP is one to it.
    fn has_no_acl(&self, node: u64, error: Errno) -> bool {
        match error {
            Errno::ENOENT | Errno::ESTALE => self.removed.attr(node).is_some(),
            Errno::EACCES => false,
            error => !raises_doubt(error),
        }
    }

    /// Who may set a `system.*` attribute the kernel leaves to the filesystem to know (xattr(7)), and steadfs may set any as root.
    /// Of the two ACLs it knows by itself.
    fn is_not_to_be_set(&self, name: &OsStr) -> bool {
        let system = name.as_encoded_bytes().starts_with(b"system.");
        system && self.has_owners() && (!is_acl(name) || self.hides_acl(name))
    }

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
