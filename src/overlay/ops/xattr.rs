//! getxattr, listxattr, setxattr, removexattr.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{ReplyEmpty, ReplyXattr};

use super::names::reply_empty;
use crate::backing::OpResult;
use crate::gate::{Class, Op};
use crate::overlay::Overlay;
use crate::overlay::convert::errno;

impl Overlay {
    /// FUSE_GETXATTR; size 0 asks for the length.
    pub fn getxattr(self: &Arc<Self>, node: u64, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.submit(
            Op::Getxattr,
            Class::Meta,
            move |overlay, context| overlay.on_path(context, node, |tree, path| tree.get_xattr(path, &name)),
            move |_, result| reply_value(result, size, reply),
        );
    }

    /// FUSE_LISTXATTR.
    pub fn listxattr(self: &Arc<Self>, node: u64, size: u32, reply: ReplyXattr) {
        self.submit(
            Op::Listxattr,
            Class::Meta,
            move |overlay, context| overlay.on_path(context, node, |tree, path| tree.list_xattr(path)),
            move |_, result| reply_value(result, size, reply),
        );
    }

    /// FUSE_SETXATTR.
    pub fn setxattr(self: &Arc<Self>, node: u64, name: &OsStr, value: &[u8], flags: i32, reply: ReplyEmpty) {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.submit(
            Op::Setxattr,
            Class::Meta,
            move |overlay, context| {
                overlay.on_path(context, node, |tree, path| tree.set_xattr(path, &name, &value, flags))
            },
            |_, result| reply_empty(result, reply),
        );
    }

    /// FUSE_REMOVEXATTR.
    pub fn removexattr(self: &Arc<Self>, node: u64, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.submit(
            Op::Removexattr,
            Class::Meta,
            move |overlay, context| overlay.on_path(context, node, |tree, path| tree.remove_xattr(path, &name)),
            |_, result| reply_empty(result, reply),
        );
    }
}

fn reply_value(result: OpResult<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}
