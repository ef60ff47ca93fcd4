package uffd

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
)

// The state file is what a page server knows that its successor must know: it maps the file, so
// that each word is there however the server ends. Layout, in pages: the header, the messages that
// were read and not yet obeyed, a bit for each removed page, the recorded working set. It lives as long as
// its VM and never leaves the host, so it is in the host's byte order and has no versions: another
// build's is refused by its magic.
const (
	stateMagic  = 0x3152475052545352 // "RSTRPGR1"
	headerBytes = memory.PageSize
	batch       = 64 // messages read at once
	maxRuns     = 16 << 10
	reasonBytes = 512
)

// Counters of a server, over all its lives.
const (
	countFaults = iota
	countCopied
	countZeroed
	countPrefetched
	countRemoved
	counters
)

// How a server ended.
const (
	endUnknown  = iota
	endGone     // the VM has
	endRefused  // the handshake was
	endDataLoss // a page is damaged
	endFailed
)

type header struct {
	magic uint64
	pages uint64
	lives uint64 // that got as far as serving
	// committed is the number of regions, once they are all there, with their sum.
	committed uint64
	sum       memory.Hash
	regions   [maxRegions]region
	// recordUntil is the end of the recording, in Unix nanoseconds; 0: over.
	recordUntil int64
	runs        uint64
	counters    [counters]uint64
	end         uint64
	reasonLen   uint64
	reason      [reasonBytes]byte
}

// run is some pages of a working set.
type run struct{ start, count uint32 }

// state is the file, mapped by its server.
type state struct {
	mem     []byte
	head    *header
	inbox   []message
	removed []uint64
	record  []run
}

func stateLayout(pages uint32) (removed, record, size int64) {
	removed = headerBytes + memory.PageSize
	bitmap := (int64(pages) + 63) / 64 * 8
	record = removed + (bitmap+memory.PageSize-1)/memory.PageSize*memory.PageSize
	return removed, record, record + maxRuns*int64(unsafe.Sizeof(run{}))
}

// createState makes the file of a new VM. Its blocks are taken now: later a full disk would be a
// signal.
func createState(path string, pages uint32) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fault.Wrap(err, "create pager state", path)
	}
	_, _, size := stateLayout(pages)
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(size)
	}
	if err == nil {
		h := header{magic: stateMagic, pages: uint64(pages)}
		_, err = f.WriteAt(headBytes(&h), 0)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(err, "create pager state", path), f.Close(), os.Remove(path))
	}
	return f, nil
}

func headBytes(h *header) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Sizeof(*h))
}

// readHeader reads the file as the agent does: it never maps what a VM's uid could truncate.
func readHeader(f *os.File) (*header, error) {
	h := &header{}
	if _, err := f.ReadAt(headBytes(h), 0); err != nil {
		return nil, fault.Wrap(err, "read pager state", f.Name())
	}
	if h.magic != stateMagic {
		return nil, fault.New(fault.FailedPrecondition, "read pager state", f.Name(), "it is of another build")
	}
	return h, nil
}

// mapState maps the file for the one server that may use it.
func mapState(f *os.File, pages uint32) (*state, error) {
	if err := lockState(f); err != nil {
		return nil, err
	}
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	if h.pages != uint64(pages) {
		return nil, fault.New(fault.FailedPrecondition, "map pager state", f.Name(), fmt.Sprintf("it is of %d pages, the memory has %d", h.pages, pages))
	}
	removed, record, size := stateLayout(pages)
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fault.Wrap(err, "map pager state", f.Name())
	}
	s := &state{
		mem: mem, head: (*header)(unsafe.Pointer(&mem[0])),
		inbox:   unsafe.Slice((*message)(unsafe.Pointer(&mem[headerBytes])), batch),
		removed: unsafe.Slice((*uint64)(unsafe.Pointer(&mem[removed])), (pages+63)/64),
		record:  unsafe.Slice((*run)(unsafe.Pointer(&mem[record])), maxRuns),
	}
	// A message that the kernel cannot write down is lost: its page stays in memory.
	_ = unix.Mlock(mem[headerBytes : headerBytes+memory.PageSize])
	return s, nil
}

// lockState makes sure that there is one server. The lock is of the open file, so it goes with
// this process, and only with it; for a moment a child that the agent is about to make may have it.
func lockState(f *os.File) error {
	var err error
	for range 100 {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			return fault.Wrap(err, "lock pager state", f.Name())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fault.New(fault.FailedPrecondition, "lock pager state", f.Name(), "another server uses it")
}

func (s *state) close() error { return unix.Munmap(s.mem) }

// lives is how many servers of a VM got as far as serving.
func (o StartOptions) lives() uint64 {
	f, err := os.Open(o.path(stateName))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // only read
	h, err := readHeader(f)
	if err != nil {
		return 0
	}
	return h.lives
}

// commit writes down the regions. Before the last store there are none.
func (s *state) commit(list []region) {
	copy(s.head.regions[:], list)
	sum := s.head.regionSum(len(list))
	s.head.sum = sum
	atomic.StoreUint64(&s.head.committed, uint64(len(list)))
}

func (h *header) regionSum(n int) memory.Hash {
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&h.regions[0])), n*int(unsafe.Sizeof(region{})))
	return xxh3.Hash128(raw)
}

// handshake returns the regions that were committed.
func (h *header) handshake(bytes int64) ([]region, error) {
	n := h.committed
	if n == 0 {
		return nil, fault.New(fault.FailedPrecondition, "attach to", "VM", "its page server died before it had written down where the memory is").
			WithHint("the VM must be ended")
	}
	if n > maxRegions || h.regionSum(int(n)) != h.sum {
		return nil, fault.New(fault.DataLoss, "attach to", "VM", "the record of its memory is damaged").WithHint("the VM must be ended")
	}
	list := append([]region(nil), h.regions[:n]...)
	return list, checkRegions(list, bytes)
}

func (s *state) count(what int, n uint32) { atomic.AddUint64(&s.head.counters[what], uint64(n)) }

func (s *state) served() { atomic.AddUint64(&s.head.lives, 1) }

func (s *state) isRemoved(n uint32) bool {
	return atomic.LoadUint64(&s.removed[n/64])&(1<<(n%64)) != 0
}

func (s *state) remove(first, count uint32) {
	setBits(s.removed, first, count)
	s.count(countRemoved, count)
}

// begin forgets how the server before this one ended: it says nothing of why this one will.
func (s *state) begin() { atomic.StoreUint64(&s.head.end, endUnknown) }

// finish says how the server ended.
func (s *state) finish(end uint64, reason string) {
	s.head.reasonLen = uint64(copy(s.head.reason[:], reason))
	atomic.StoreUint64(&s.head.end, end)
}

// recording tells whether the order of faults is still of interest.
func (s *state) recording() bool {
	until := atomic.LoadInt64(&s.head.recordUntil)
	return until != 0 && time.Now().UnixNano() < until
}

// note adds pages to the working set; only the serving loop does.
func (s *state) note(start, count uint32) {
	n := atomic.LoadUint64(&s.head.runs)
	if n > 0 && n <= maxRuns {
		if last := &s.record[n-1]; last.start+last.count == start {
			atomic.AddUint32(&last.count, count)
			return
		}
	}
	if n < maxRuns {
		s.record[n] = run{start, count}
		atomic.StoreUint64(&s.head.runs, n+1)
	}
}

// setBits sets count bits from first on.
func setBits(words []uint64, first, count uint32) {
	for n, end := first, first+count; n < end; {
		upTo := min(end, n/64*64+64)
		mask := (^uint64(0) >> (64 - (upTo - n))) << (n % 64)
		atomic.OrUint64(&words[n/64], mask)
		n = upTo
	}
}

func clearBits(words []uint64, first, count uint32) {
	for n, end := first, first+count; n < end; {
		upTo := min(end, n/64*64+64)
		mask := (^uint64(0) >> (64 - (upTo - n))) << (n % 64)
		atomic.AndUint64(&words[n/64], ^mask)
		n = upTo
	}
}

// alike counts the bits from first on that are as want says, at most most.
func alike(words []uint64, first, most uint32, want bool) uint32 {
	for n, end := first, first+most; n < end; {
		w := atomic.LoadUint64(&words[n/64])
		if want {
			w = ^w
		}
		if w >>= n % 64; w != 0 {
			return min(n+uint32(bits.TrailingZeros64(w)), end) - first
		}
		n = n/64*64 + 64
	}
	return most
}
