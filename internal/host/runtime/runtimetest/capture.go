package runtimetest

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/runtime"
)

// testSnapshot: a capture is of its moment for ever, whatever its source does afterwards.
func (s *suite) testSnapshot(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	b.sh("echo first >/root/file")
	b.freeze()
	first := b.capture(runtime.CaptureOptions{})
	unchanged := b.keeps(first)
	b.thaw()
	atFirst := b.ticks(tick)
	b.sh("echo second >/root/file; dd if=/dev/urandom of=/root/more bs=1M count=4 2>/dev/null; sync")
	b.goesOn(tick, atFirst)
	unchanged()

	b.freeze()
	second := b.capture(runtime.CaptureOptions{})
	b.thaw()
	b.sh("echo third >/root/file; sync")
	unchanged()

	for content, c := range map[string]saved{"first": first, "second": second} {
		copied := s.newBox(t)
		copied.restore(c)
		copied.introduce()
		require.Equal(t, content+"\n", copied.content("/root/file"))
		at := copied.ticks(tick)
		copied.thawGuest()
		copied.goesOn(tick, at)
		require.Equal(t, content, copied.sh(uncached+"cat /root/file"))
		copied.sh("echo mine >/root/file; sync")
	}
	require.Equal(t, "third", b.sh("cat /root/file"))
	unchanged()
}

// keeps returns a check that every file of a capture, and every one that it stands on, is as
// it is now.
func (b *box) keeps(c saved) func() {
	b.Helper()
	files, err := b.rt.Files(c.Capture)
	require.NoError(b, err)
	for _, f := range filesBelow(b, c.Dir) {
		files = append(files, filepath.Join(c.Dir, f))
	}
	slices.Sort(files)
	files = slices.Compact(files)
	before := map[string][sha256.Size]byte{}
	for _, f := range files {
		before[f] = b.hash(f)
	}
	return func() {
		b.Helper()
		for f, sum := range before {
			require.Equal(b, sum, b.hash(f), f)
		}
	}
}

func (b *box) hash(path string) [sha256.Size]byte {
	b.Helper()
	f, err := os.Open(path)
	require.NoError(b, err)
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(b, err)
	return [sha256.Size]byte(h.Sum(nil))
}

// testSnapshotOften: there is no bound to the captures of one running sandbox.
func (s *suite) testSnapshotOften(t *testing.T) {
	const times = disk.MaxDepth
	b := s.fresh(t)
	all := make([]saved, times)
	for i := range all {
		b.sh("echo %d >/root/last; echo %d >/root/file-%d; sync", i, i, i)
		b.freeze()
		all[i] = b.capture(runtime.CaptureOptions{})
		b.thaw()
	}
	for _, i := range []int{0, times - 1} {
		copied := s.newBox(t)
		copied.start(copied.compact(all[i]))
		require.Equal(t, numbers(i)+strconv.Itoa(i), copied.sh(uncached+"cat /root/file-* /root/last"))
		copied.stop()
	}
	require.Equal(t, numbers(times-1)+strconv.Itoa(times-1), b.sh(uncached+"cat /root/file-* /root/last"))
}

// numbers are the lines 0 to n.
func numbers(n int) string {
	out := ""
	for i := range n + 1 {
		out += strconv.Itoa(i) + "\n"
	}
	return out
}

// compact makes a capture restorable that has become too deep.
func (b *box) compact(c saved) saved {
	b.Helper()
	unchanged := b.keeps(c)
	record, changed, err := b.rt.Compact(b.ctx(), b.spec, c.Capture)
	require.NoError(b, err)
	unchanged()
	if changed {
		c.Record = record
		_, again, err := b.rt.Compact(b.ctx(), b.spec, c.Capture)
		require.NoError(b, err)
		require.False(b, again, "compacted already")
	}
	return c
}

// testPauseOften: nor is there one to pauses. As the state machine does, each pause gives the
// one before as its parent, and then removes what the new capture does not stand on.
func (s *suite) testPauseOften(t *testing.T) {
	const times = disk.MaxDepth
	b := s.fresh(t)
	tick := b.tick()
	var parent *runtime.Capture
	for i := range times {
		b.sh("echo %d >/root/file-%d", i, i)
		c := b.pause(runtime.CaptureOptions{Parent: parent})
		b.prune(c)
		b = b.again()
		c = b.compact(c)
		b.prune(c)
		b.start(c)
		parent = &c.Capture
	}
	b.goesOn(tick, b.ticks(tick))
	require.Equal(t, numbers(times-1), b.sh(uncached+"cat /root/file-*")+"\n")
}

// prune removes files that a capture does not stand on from the sandbox's directories.
func (b *box) prune(c saved) {
	b.Helper()
	files, err := b.rt.Files(c.Capture)
	require.NoError(b, err)
	root := filepath.Dir(b.spec.DiskDir)
	for _, f := range filesBelow(b, root) {
		path := filepath.Join(root, f)
		rel, err := filepath.Rel(c.Dir, path)
		inside := err == nil && filepath.IsLocal(rel)
		run, err := filepath.Rel(b.spec.RunDir, path)
		if inside || slices.Contains(files, path) || err == nil && filepath.IsLocal(run) {
			continue
		}
		require.NoError(b, os.Remove(path))
	}
}

// testFork: many copies of one capture at the same time, beside their source, and each is a
// sandbox of its own.
func (s *suite) testFork(t *testing.T) {
	const copies = 4
	b := s.fresh(t)
	tick := b.tick()
	b.sh("echo common >/root/file")
	b.freeze()
	c := b.capture(runtime.CaptureOptions{})
	b.thaw()
	forks := make([]*box, copies)
	var all errgroup.Group
	for i := range forks {
		f := s.newBox(t)
		forks[i] = f
		all.Go(func() (err error) {
			f.in, err = f.rt.Restore(t.Context(), f.spec, c.Capture)
			return err
		})
	}
	require.NoError(t, all.Wait())
	random, ids := map[string]bool{}, map[string]bool{}
	family := slices.Concat(forks, []*box{b})
	for _, f := range family {
		if f != b {
			require.NoError(t, f.in.Thaw(f.ctx()))
			f.connect(c.token)
			facts := f.introduce()
			ids[facts.BootID] = true
			f.thawGuest()
		}
		said := f.sh("cat /root/file /etc/machine-id; hostname; date +%%s; head -c 16 /dev/urandom | od -An -tx1; echo %s >/root/file; sync", f.spec.ID)
		lines := strings.Split(said, "\n")
		require.Len(t, lines, 5)
		require.Equal(t, []string{"common", f.id.MachineID, f.spec.ID}, lines[:3])
		isNow(t, lines[3])
		random[lines[4]] = true
	}
	require.Len(t, random, copies+1, "two of them have the same random numbers")
	require.Len(t, ids, copies, "two of them have the same boot id")
	for _, f := range family {
		require.Equal(t, f.spec.ID, f.sh(uncached+"cat /root/file"), "disks are independent")
		f.goesOn(tick, f.ticks(tick))
	}
}

// testChain: a capture of what was restored from a capture, each another sandbox.
func (s *suite) testChain(t *testing.T) {
	const depth = 4
	b := s.fresh(t)
	tick := b.tick()
	for i := range depth {
		b.sh("echo %d >/root/file-%d; echo %d >/dev/shm/file-%d", i, i, i, i)
		at := b.ticks(tick)
		c := b.pause(runtime.CaptureOptions{})
		b = s.newBox(t)
		b.start(c)
		b.goesOn(tick, at)
	}
	require.Equal(t, numbers(depth-1)+numbers(depth-1), b.sh(uncached+"cat /root/file-* /dev/shm/file-*")+"\n")
}

// testDiskOnly: files come back, processes do not; from a capture of the disk alone and from
// a whole one, into a disk of another size.
func (s *suite) testDiskOnly(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	b.sh("echo kept >/root/file; echo gone >/dev/shm/file; dd if=/dev/urandom of=/root/big bs=1M count=3 2>/dev/null")
	sum := b.sh("md5sum </root/big")
	b.freeze()
	alone := b.capture(runtime.CaptureOptions{DiskOnly: true})
	b.thaw()
	b.goesOn(tick, b.ticks(tick))

	_, err := b.rt.Restore(b.ctx(), s.newBox(t).spec, alone.Capture)
	refused(t, err, fault.FailedPrecondition)

	booted := s.newBox(t)
	if !b.rt.Capabilities().FixedDisk {
		booted.spec.Resources.DiskSizeMB = 2 * warmDiskMB
	}
	booted.boot(runtime.BootOptions{From: &alone.Capture})
	booted.introduce()
	booted.thawGuest()
	booted.sizeIs(booted.spec.Resources.DiskSizeMB)
	booted.sh("test ! -e /dev/shm/file && ! pgrep -f %s", tick.path)
	require.Equal(t, sum, booted.sh("md5sum </root/big"))
	at := booted.ticks(tick)
	require.Positive(t, at)
	require.Equal(t, at, booted.ticks(tick), "its processes are gone")

	// What was booted so is a sandbox like any other.
	booted.sh("echo again >/root/file")
	c := booted.pause(runtime.CaptureOptions{})
	next := booted.again()
	next.start(c)
	require.Equal(t, "again", next.sh("cat /root/file"))
	require.Equal(t, sum, next.sh("md5sum </root/big"))
	require.Equal(t, "kept", b.sh("cat /root/file"))
}
