//! State shared by all hosts, behind one lock: who listens, who is connected, who is off.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::connection::{Connection, End, Step, park};
use super::links::{Count, Links, Pair};
use super::{NetFaults, Tap};

/// Connections that may wait to be accepted; any more are refused.
const BACKLOG_MAX: usize = 4096;

/// First port assigned to a bind to port 0.
const FREE_PORT_FIRST: u16 = 49_152;

/// How long a dial waits for an answer, in milliseconds; drawn per dial.
const DIAL_MS: (u64, u64) = (1000, 3000);

/// The calling process: its host's number, and how often that was killed before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) host: usize,
    incarnation: u64,
}

/// One end of a connection, by numbers.
#[derive(Clone, Copy)]
pub(super) struct EndId {
    pub(super) connection: u64,
    pub(super) end: usize,
}

/// A listener: where it listens, and its own number.
#[derive(Clone, Copy)]
pub(super) struct ListenerId {
    host: usize,
    pub(super) port: u16,
    number: u64,
}

struct Host {
    name: Arc<str>,
    incarnation: u64,
    off: bool,
}

struct Listening {
    number: u64,
    backlog: VecDeque<u64>,
    waker: Option<Waker>,
}

/// A dial under way.
pub(super) struct Dial {
    from: Process,
    to: usize,
    port: u16,
    /// When it fails if nobody has answered.
    pub(super) deadline: Instant,
    /// It waits for a partition to end.
    hung: bool,
    /// Its packets have spent their travel time.
    travelled: bool,
}

/// Result of an attempt to dial.
pub(super) enum Dialled {
    Connected(EndId),
    Travels(Duration),
    Hangs,
}

pub(super) struct State {
    pub(super) links: Links,
    numbers: BTreeMap<Arc<str>, usize>,
    hosts: Vec<Host>,
    listeners: BTreeMap<(usize, u16), Listening>,
    connections: BTreeMap<u64, Connection>,
    /// Number of the next connection or listener.
    next: u64,
    /// Wakers to wake once the lock is released.
    pub(super) wakes: Vec<Waker>,
    pub(super) tap: Option<Tap>,
}

impl State {
    pub(super) fn new(seed: u64, faults: NetFaults) -> Self {
        Self {
            links: Links::new(seed, faults),
            numbers: BTreeMap::new(),
            hosts: Vec::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
            wakes: Vec::new(),
            tap: None,
        }
    }

    /// The number of the host with this name.
    pub(super) fn number(&mut self, name: &str) -> usize {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let name: Arc<str> = name.into();
        self.hosts.push(Host {
            name: Arc::clone(&name),
            incarnation: 0,
            off: false,
        });
        let number = self.hosts.len() - 1;
        self.numbers.insert(name, number);
        number
    }

    pub(super) fn pair(&mut self, from: &str, to: &str) -> Pair {
        (self.number(from), self.number(to))
    }

    /// The process running on a host now.
    pub(super) fn process(&mut self, name: &str) -> Process {
        let host = self.number(name);
        let incarnation = self.hosts[host].incarnation;
        Process { host, incarnation }
    }

    pub(super) fn host_name(&self, host: usize) -> &str {
        &self.hosts[host].name
    }

    fn check_alive(&self, process: Process) -> io::Result<()> {
        let host = &self.hosts[process.host];
        if host.off || host.incarnation != process.incarnation {
            return Err(ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    fn tap(&self, what: &str, (from, to): Pair, bytes: &[u8]) {
        if let Some(tap) = &self.tap {
            tap(what, &self.hosts[from].name, &self.hosts[to].name, bytes);
        }
    }

    #[cfg(test)]
    pub(super) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    fn number_next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn is_silent(&self, pair: Pair) -> bool {
        self.hosts[pair.0].off || self.hosts[pair.1].off || self.links.is_blocked(pair)
    }
}

/// Listening and dialling.
impl State {
    pub(super) fn bind(&mut self, process: Process, to: &str, port: u16) -> io::Result<ListenerId> {
        self.check_alive(process)?;
        let host = process.host;
        if to != self.host_name(host) {
            return Err(ErrorKind::AddrNotAvailable.into());
        }
        let free = |port: &u16| !self.listeners.contains_key(&(host, *port));
        let port = if port == 0 {
            (FREE_PORT_FIRST..=u16::MAX).find(free)
        } else {
            Some(port).filter(free)
        };
        let port = port.ok_or(ErrorKind::AddrInUse)?;
        let number = self.number_next();
        let listening = Listening {
            number,
            backlog: VecDeque::new(),
            waker: None,
        };
        self.listeners.insert((host, port), listening);
        Ok(ListenerId { host, port, number })
    }

    fn listening(&mut self, id: ListenerId) -> Option<&mut Listening> {
        let listening = self.listeners.get_mut(&(id.host, id.port));
        listening.filter(|listening| listening.number == id.number)
    }

    /// The next connection of a listener and the name of the dialling host.
    pub(super) fn accept(
        &mut self,
        id: ListenerId,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(EndId, String)>> {
        let mut wakes = Vec::new();
        let Some(listening) = self.listening(id) else {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        };
        let Some(connection) = listening.backlog.pop_front() else {
            park(&mut listening.waker, cx.waker(), &mut wakes);
            self.wakes.extend(wakes);
            return Poll::Pending;
        };
        let pair = self.connections[&connection].pair(0);
        self.tap("accept", pair, &[]);
        let peer = self.host_name(pair.0).to_owned();
        Poll::Ready(Ok((EndId { connection, end: 1 }, peer)))
    }

    /// Frees the address of a listener. Connections waiting to be accepted see a reset.
    pub(super) fn stop_listening(&mut self, id: ListenerId) {
        if self.listening(id).is_none() {
            return;
        }
        let Some(listening) = self.listeners.remove(&(id.host, id.port)) else {
            return;
        };
        self.wakes.extend(listening.waker);
        let now = Instant::now();
        for connection in listening.backlog {
            self.abort(EndId { connection, end: 1 }, now);
        }
    }

    /// Resets a connection from an end that no process has ever held.
    fn abort(&mut self, id: EndId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id.connection) else {
            return;
        };
        let delay = self.links.fate(connection.pair(id.end), 0, now).delay;
        connection.reset(id.end, now, delay);
        self.close(id);
    }

    pub(super) fn begin_dial(&mut self, from: Process, to: &str, port: u16) -> io::Result<Dial> {
        self.check_alive(from)?;
        let to = self.number(to);
        self.tap("dial", (from.host, to), &port.to_be_bytes());
        Ok(Dial {
            from,
            to,
            port,
            deadline: Instant::now() + self.links.millis(DIAL_MS.0, DIAL_MS.1),
            hung: false,
            travelled: false,
        })
    }

    /// Continues a dial, which needs both directions.
    pub(super) fn dial(&mut self, dial: &mut Dial) -> io::Result<Dialled> {
        self.check_alive(dial.from)?;
        let (there, back) = ((dial.from.host, dial.to), (dial.to, dial.from.host));
        if self.is_silent(there) || self.is_silent(back) {
            self.links.fired(there);
            self.links.fired(back);
            (dial.hung, dial.travelled) = (true, false);
            return Ok(Dialled::Hangs);
        }
        if !dial.travelled {
            dial.travelled = true;
            let now = Instant::now();
            let mut delay = self.links.fate(there, 0, now).delay;
            delay += self.links.fate(back, 0, now).delay;
            if dial.hung {
                delay += self.links.held_delay();
            }
            if !delay.is_zero() {
                return Ok(Dialled::Travels(delay));
            }
        }
        let connection = self.number_next();
        let listening = self.listeners.get_mut(&(dial.to, dial.port));
        let listening = listening.filter(|listening| listening.backlog.len() < BACKLOG_MAX);
        let listening = listening.ok_or(ErrorKind::ConnectionRefused)?;
        listening.backlog.push_back(connection);
        self.wakes.extend(listening.waker.take());
        let ends = Connection::new([dial.from.host, dial.to]);
        self.connections.insert(connection, ends);
        Ok(Dialled::Connected(EndId { connection, end: 0 }))
    }
}

/// Reading and writing.
impl State {
    pub(super) fn read(
        &mut self,
        id: EndId,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Step<()> {
        let Some(connection) = self.connections.get_mut(&id.connection) else {
            return Step::failed(ErrorKind::ConnectionReset);
        };
        let step = connection.read(id.end, Instant::now(), buffer, &mut self.wakes);
        if matches!(step, Step::Wait(_)) {
            connection.park_reader(id.end, cx.waker(), &mut self.wakes);
        }
        step
    }

    /// Sends the bytes of `slices` as one chunk, as far as there is room; returns how many.
    pub(super) fn write(
        &mut self,
        id: EndId,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Step<usize> {
        let now = Instant::now();
        let Some(connection) = self.connections.get_mut(&id.connection) else {
            return Step::failed(ErrorKind::ConnectionReset);
        };
        if let Err(kind) = connection.check_write(id.end, now) {
            return Step::failed(kind);
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let len = wanted.min(connection.outgoing(id.end).room());
        if len == 0 && wanted > 0 {
            connection.park_writer(id.end, cx.waker(), &mut self.wakes);
            return Step::Wait(connection.write_deadline(id.end));
        }
        if len > 0 {
            let (pair, chunk) = (connection.pair(id.end), gather(slices, len));
            self.tap("send", pair, &chunk);
            self.links.count(Count::Chunks, 1);
            self.links.count(Count::Bytes, len as u64);
            self.send(id, chunk, now);
        }
        Step::Done(Ok(len))
    }

    fn send(&mut self, id: EndId, mut chunk: BytesMut, now: Instant) {
        let (links, wakes) = (&mut self.links, &mut self.wakes);
        let Some(connection) = self.connections.get_mut(&id.connection) else {
            return;
        };
        let (there, back) = (connection.pair(id.end), connection.pair(1 - id.end));
        if connection.outgoing(id.end).discards() {
            return;
        }
        if connection.outgoing(id.end).is_silent() {
            links.fired(there);
            wakes.extend(connection.send(id.end, chunk.freeze(), now, Duration::ZERO));
            return;
        }
        let fate = links.fate(there, chunk.len(), now);
        if let Some((at, bits)) = fate.corrupt {
            chunk[at] ^= bits;
        }
        let Some(cut) = fate.cut else {
            wakes.extend(connection.send(id.end, chunk.freeze(), now, fate.delay));
            if connection.must_refuse(1 - id.end) {
                let delay = links.fate(back, 0, now).delay;
                connection.refuse(1 - id.end, now, delay);
                connection.wake_all(wakes);
            }
            return;
        };
        chunk.truncate(cut);
        if cut > 0 {
            wakes.extend(connection.send(id.end, chunk.freeze(), now, fate.delay));
        }
        connection.reset(id.end, now, fate.delay);
        let delay = links.fate(back, 0, now).delay;
        connection.reset(1 - id.end, now, delay);
        connection.wake_all(wakes);
    }

    /// Succeeds if a process holds this end: nothing is buffered here.
    pub(super) fn flush(&self, id: EndId) -> io::Result<()> {
        match self.connections.get(&id.connection) {
            Some(connection) if connection.end(id.end) == End::Open => Ok(()),
            _ => Err(ErrorKind::ConnectionReset.into()),
        }
    }

    /// Declares that this end writes nothing more. It may still read.
    pub(super) fn shut(&mut self, id: EndId) -> io::Result<()> {
        let now = Instant::now();
        let connection = self.connections.get_mut(&id.connection);
        let connection = connection.ok_or(ErrorKind::ConnectionReset)?;
        if !connection.is_shut(id.end) {
            connection.check_write(id.end, now)?;
            self.end_stream(id, now);
            return Ok(());
        }
        self.flush(id)
    }

    fn end_stream(&mut self, id: EndId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id.connection) else {
            return;
        };
        let pair = connection.pair(id.end);
        let delay = self.links.fate(pair, 0, now).delay;
        connection.shut(id.end, now, delay, &mut self.wakes);
        self.tap("close", pair, &[]);
    }

    /// Closes an end that a process held: the end of stream follows what was sent, and whatever
    /// arrives from now on is refused.
    pub(super) fn close(&mut self, id: EndId) {
        let now = Instant::now();
        let Some(connection) = self.connections.get(&id.connection) else {
            return;
        };
        let is_open = connection.end(id.end) == End::Open;
        if is_open && !connection.is_shut(id.end) {
            self.end_stream(id, now);
        }
        let Some(connection) = self.connections.get_mut(&id.connection) else {
            return;
        };
        if is_open {
            connection.close(id.end);
            if connection.must_refuse(id.end) {
                let delay = self.links.fate(connection.pair(id.end), 0, now).delay;
                connection.refuse(id.end, now, delay);
            }
            connection.wake_all(&mut self.wakes);
        }
        if connection.is_over() {
            self.connections.remove(&id.connection);
        }
    }
}

/// Faults of hosts and links.
impl State {
    /// Updates all connections to which directions are silent now.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        let mut connections = std::mem::take(&mut self.connections);
        for connection in connections.values_mut() {
            for end in 0..2 {
                let pair = connection.pair(end);
                let silent = self.is_silent(pair);
                if silent == connection.outgoing(end).is_silent() {
                    continue;
                }
                let delay = if silent {
                    Duration::ZERO
                } else {
                    self.links.held_delay()
                };
                if connection.set_silent(end, silent, now, delay) {
                    self.links.fired(pair);
                }
                connection.wake_all(&mut self.wakes);
            }
            for end in 0..2 {
                if connection.must_refuse(end) {
                    let delay = self.links.fate(connection.pair(end), 0, now).delay;
                    connection.refuse(end, now, delay);
                }
            }
        }
        self.connections = connections;
    }

    fn ends_at(&self, host: usize) -> Vec<EndId> {
        let ends = |(&connection, ends): (&u64, &Connection)| {
            [0, 1].map(|end| (ends.pair(end).0 == host).then_some(EndId { connection, end }))
        };
        let ends = self.connections.iter().flat_map(ends);
        ends.flatten().collect()
    }

    fn drop_listeners(&mut self, host: usize) -> Vec<Listening> {
        let ports = (host, 0)..=(host, u16::MAX);
        let dropped = self.listeners.extract_if(ports, |_, _| true);
        dropped.map(|(_, listening)| listening).collect()
    }

    pub(super) fn kill(&mut self, host: usize) {
        let now = Instant::now();
        if self.hosts[host].off {
            return;
        }
        self.hosts[host].incarnation += 1;
        for listening in self.drop_listeners(host) {
            self.wakes.extend(listening.waker);
            for connection in listening.backlog {
                self.abort(EndId { connection, end: 1 }, now);
            }
        }
        for end in self.ends_at(host) {
            self.close(end);
        }
    }

    pub(super) fn power_off(&mut self, host: usize) {
        let now = Instant::now();
        if self.hosts[host].off {
            return;
        }
        self.hosts[host].incarnation += 1;
        self.hosts[host].off = true;
        for listening in self.drop_listeners(host) {
            self.wakes.extend(listening.waker);
        }
        for id in self.ends_at(host) {
            if let Some(connection) = self.connections.get_mut(&id.connection) {
                connection.power_off(id.end, now);
                connection.wake_all(&mut self.wakes);
            }
        }
        self.connections
            .retain(|_, connection| !connection.is_over());
        self.settle();
    }

    pub(super) fn power_on(&mut self, host: usize) {
        let now = Instant::now();
        if !self.hosts[host].off {
            return;
        }
        self.hosts[host].off = false;
        let mut keepalives = Vec::new();
        for id in self.ends_at(host) {
            if let Some(connection) = self.connections.get_mut(&id.connection) {
                keepalives.push((id, connection.keepalive(id.end).unwrap_or(now)));
                connection.close(id.end);
            }
        }
        self.settle();
        for (id, at) in keepalives {
            if let Some(connection) = self.connections.get_mut(&id.connection) {
                connection.reset(id.end, now, at.saturating_duration_since(now));
                connection.wake_all(&mut self.wakes);
            }
        }
    }
}

/// The first `len` bytes of `slices`.
fn gather(slices: &[IoSlice<'_>], len: usize) -> BytesMut {
    let mut chunk = BytesMut::with_capacity(len);
    for slice in slices {
        let count = slice.len().min(len - chunk.len());
        chunk.extend_from_slice(&slice[..count]);
    }
    chunk
}
