//! Packets with descriptors between two processes. Nothing here blocks.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};

use super::message::Message;

/// Longest packet in bytes.
const PACKET: usize = 64 << 10;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What [`Channel::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A message, with the descriptor that came with it.
    Message(Message, Option<OwnedFd>),
    /// A packet that this version does not understand, in words.
    Unknown(String),
    /// Nothing now.
    Nothing,
    /// The other side is gone, and all that it said has been read.
    Closed,
}

impl Channel {
    /// Two ends, both closed when a program is run.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(one), Channel(other)))
    }

    /// Sends now or not at all (EAGAIN: the other side has not read for long; EPIPE: it is gone).
    pub fn send(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        let descriptors: Vec<RawFd> = descriptor.iter().map(|fd| fd.as_raw_fd()).collect();
        let with = [ControlMessage::ScmRights(&descriptors)];
        let with: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &with };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&packet)], with, flags, None) {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// The next packet.
    pub fn receive(&self) -> io::Result<Received> {
        let mut packet = vec![0; PACKET];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, descriptor) = loop {
            let mut parts = [IoSliceMut::new(&mut packet)];
            match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                // ECONNRESET: it went without having read all; what it said itself is still to be read.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Ok(Received::Nothing),
                Err(errno) => return Err(errno.into()),
                Ok(received) => {
                    let mut descriptor = None;
                    for control in received.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(raw) = control {
                            // SAFETY: the kernel has just made these descriptors for us alone.
                            descriptor = raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }).next_back();
                        }
                    }
                    break (received.bytes, descriptor);
                }
            }
        };
        if length == 0 {
            return Ok(Received::Closed);
        }
        let packet = &packet[..length];
        Ok(match serde_json::from_slice(packet) {
            Ok(message) => Received::Message(message, descriptor),
            Err(error) => Received::Unknown(format!("{error}: {:.200}", String::from_utf8_lossy(packet))),
        })
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Channel {
        Channel(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_arrives_with_its_descriptor() {
        let (one, other) = Channel::pair().expect("a pair");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        one.send(&Message::Hold { name: "pipe".into() }, Some(writer.as_fd())).expect("sent");
        drop(writer);
        let Ok(Received::Message(Message::Hold { name }, Some(fd))) = other.receive() else { panic!("not that") };
        assert_eq!(name, "pipe");
        std::fs::File::from(fd).write_all(b"x").expect("written");
        let mut all = String::new();
        reader.read_to_string(&mut all).expect("read to the end: nobody else has it");
        assert_eq!(all, "x");
        assert!(matches!(other.receive(), Ok(Received::Nothing)));
    }

    #[test]
    fn the_last_words_of_one_who_did_not_listen_are_heard() {
        let (one, other) = Channel::pair().expect("a pair");
        other.send(&Message::Yield, None).expect("sent");
        one.send(&Message::Ended { status: 3 }, None).expect("sent");
        drop(one);
        assert!(matches!(other.receive(), Ok(Received::Message(Message::Ended { status: 3 }, None))));
        assert!(matches!(other.receive(), Ok(Received::Closed)));
        assert!(other.send(&Message::Yield, None).is_err());
    }

    #[test]
    fn what_a_newer_version_says_is_passed_over() {
        let (one, other) = Channel::pair().expect("a pair");
        let raw = |text: &[u8]| nix::sys::socket::send(one.0.as_raw_fd(), text, MsgFlags::empty()).expect("sent");
        raw(br#"{"kind":"sing","song":"x"}"#);
        raw(br#"{"kind":"ended","status":1,"more":[]}"#);
        assert!(matches!(other.receive(), Ok(Received::Unknown(text)) if text.contains("sing")));
        assert!(matches!(other.receive(), Ok(Received::Message(Message::Ended { status: 1 }, None))));
    }
}
