package runtimetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/runtime"
)

// root is what the directories of all boxes of a case lie below.
func (b *box) root() string { return filepath.Dir(filepath.Dir(b.spec.DiskDir)) }

// newCaptureDir makes a directory for a capture beside the box's own.
func (b *box) newCaptureDir(name string) string {
	b.Helper()
	dir := filepath.Join(filepath.Dir(b.spec.DiskDir), name)
	require.NoError(b, os.Mkdir(dir, 0o700))
	return dir
}

// link gives a capture a directory of its own, published by a rename; the capture stays what it
// was.
func (b *box) link(c saved, dir string) saved {
	b.Helper()
	unchanged := b.keeps(c)
	stage := dir + ".stage"
	require.NoError(b, os.Rename(dir, stage))
	mine := filepath.Join(stage, "manifest.json")
	require.NoError(b, os.WriteFile(mine, []byte("mine"), 0o600))
	record, err := b.rt.Link(b.ctx(), c.Capture, stage, b.root())
	require.NoError(b, err)
	require.NoError(b, os.Rename(stage, dir))
	unchanged()
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	require.NoError(b, err)
	require.Equal(b, "mine", string(text))
	c.Dir, c.Record = dir, record
	return c
}

// destroy removes a box that has ended, with all its captures, and leaves what its end wants to
// look at.
func (b *box) destroy() {
	b.Helper()
	require.NoError(b, b.rt.Discard(b.Context(), b.spec))
	own := filepath.Dir(b.spec.DiskDir)
	require.NoError(b, os.RemoveAll(own))
	for _, dir := range []string{own, b.spec.RunDir, b.spec.DiskDir} {
		require.NoError(b, os.Mkdir(dir, 0o700))
	}
}

// testLink: what was linked needs nothing of its source any more, nor does its source of it.
func (s *suite) testLink(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	b.sh("echo first >/root/file; echo volatile >/dev/shm/file")
	b.freeze()
	b.capture(runtime.CaptureOptions{}) // so that the next one stands on its disk
	b.thaw()
	b.sh("echo second >/root/file; echo more >/root/more")
	b.freeze()
	c := b.capture(runtime.CaptureOptions{})
	b.thaw()
	home := s.newBox(t) // of a snapshot: never started
	linked := home.link(c, home.newCaptureDir("snapshot"))
	twice, err := b.rt.Link(b.ctx(), c.Capture, linked.Dir, b.root())
	require.NoError(t, err)
	require.JSONEq(t, string(linked.Record), string(twice), "linked already")
	b.sh("echo third >/root/file; sync")
	b.stop()
	b.destroy()
	for range 2 {
		copied := s.newBox(t)
		copied.start(linked)
		copied.goesOn(tick, copied.ticks(tick))
		require.Equal(t, "second\nvolatile\nmore", copied.sh(uncached+"cat /root/file /dev/shm/file /root/more"))
		copied.sh("echo mine >/root/file; sync")
	}
}

// testLinkOften: a snapshot of a sandbox made from a snapshot of one made from …, each of which
// is destroyed, also deeper than layers go.
func (s *suite) testLinkOften(t *testing.T) {
	const depth = disk.MaxDepth + 2
	b := s.fresh(t)
	tick := b.tick()
	var from *runtime.Capture
	for i := range depth {
		b.sh("echo %d >/root/file-%d; echo %d >/dev/shm/file-%d; sync", i, i, i, i)
		at := b.ticks(tick)
		c := b.pause(runtime.CaptureOptions{Parent: from})
		snapshot := s.newBox(t)
		linked := snapshot.link(c, snapshot.newCaptureDir("snapshot"))
		b.destroy()

		next := s.newBox(t)
		own := next.link(linked, next.newCaptureDir("capture-0"))
		snapshot.destroy()
		own = next.compact(own)
		if i%2 == 0 { // what merging made elsewhere belongs to it as well
			record, err := next.rt.Link(next.ctx(), own.Capture, own.Dir, next.root())
			require.NoError(t, err)
			own.Record = record
			files, err := next.rt.Files(own.Capture)
			require.NoError(t, err)
			for _, f := range files {
				require.NotContains(t, f, next.spec.DiskDir+"/", "it was to be linked")
			}
		}
		next.start(own)
		next.goesOn(tick, at)
		b, from = next, &own.Capture
	}
	require.Equal(t, numbers(depth-1)+numbers(depth-1), b.sh(uncached+"cd /root; cat $(ls file-* | sort -t- -n -k2); cd /dev/shm; cat $(ls file-* | sort -t- -n -k2)")+"\n")
}

// testSalvage: the disk of a sandbox that died is all there, as far as its guest had synced it.
func (s *suite) testSalvage(t *testing.T) {
	b := s.fresh(t)
	old := b.record()
	dir := b.newCaptureDir("salvaged")
	if !b.rt.Capabilities().DiskApart {
		b.kill()
		b.awaitExit()
		_, err := b.rt.Salvage(t.Context(), b.spec, old, dir)
		refused(t, err, fault.FailedPrecondition)
		return
	}
	b.sh("echo first >/root/file; sync")
	_, err := b.rt.Salvage(t.Context(), b.spec, old, dir)
	refused(t, err, fault.FailedPrecondition) // it runs
	b.sh("echo still writes >/root/file; sync")
	b.freeze()
	c := b.capture(runtime.CaptureOptions{})
	unchanged := b.keeps(c)
	b.thaw()
	b.sh("echo last >/root/file; dd if=/dev/urandom of=/root/big bs=1M count=3 2>/dev/null; sync")
	sum := b.sh("md5sum </root/big")
	b.kill()
	require.False(t, b.awaitExit().Requested)

	b.salvageRefuses(c, old, dir)
	var salvaged saved
	for range 2 { // with the record of before the capture, and again
		record, err := b.rt.Salvage(t.Context(), b.spec, old, dir)
		require.NoError(t, err)
		again := saved{Capture: runtime.Capture{Dir: dir, Record: record}, resources: b.spec.Resources}
		if salvaged.Dir != "" {
			require.Equal(t, salvaged, again, "idempotent")
		}
		salvaged = again
	}
	kept := b.keeps(salvaged)
	require.NoError(t, b.in.Stop(t.Context()))
	require.NoError(t, b.rt.Discard(t.Context(), b.spec))
	kept()
	unchanged()
	_, err = b.rt.Restore(t.Context(), s.newBox(t).spec, salvaged.Capture)
	refused(t, err, fault.FailedPrecondition) // it has no memory

	next := b.again()
	next.boot(runtime.BootOptions{From: &salvaged.Capture})
	next.introduce()
	next.thawGuest()
	require.Equal(t, "last", next.sh("cat /root/file"))
	require.Equal(t, sum, next.sh("md5sum </root/big"))
	next.sh("echo lives >/root/file; sync")
	kept()
}

// salvageRefuses damages the head of each disk that no capture has, as it lies there when its
// sandbox is dead: that is damage, which leads back to the capture, and no more than that.
func (b *box) salvageRefuses(c saved, record json.RawMessage, dir string) {
	b.Helper()
	sealed, err := b.rt.Files(c.Capture)
	require.NoError(b, err)
	damaged := 0
	for _, name := range filesBelow(b, b.spec.DiskDir) {
		path := filepath.Join(b.spec.DiskDir, name)
		if slices.Contains(sealed, path) {
			continue
		}
		damaged++
		aside := path + ".aside"
		require.NoError(b, os.Rename(path, aside))
		require.NoError(b, os.WriteFile(path, []byte("no disk that anybody has made"), 0o600))
		_, err := b.rt.Salvage(b.Context(), b.spec, record, dir)
		refused(b, err, fault.DataLoss)
		require.NotEmpty(b, fault.HintOf(err))
		require.NoError(b, os.Rename(aside, path))
	}
	require.Positive(b, damaged, "the last disk")
}

// testStopped: a sandbox whose process a signal holds says so; one that is frozen does not.
func (s *suite) testStopped(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	require.Empty(t, b.in.Stopped())
	b.freeze()
	require.Empty(t, b.in.Stopped(), "frozen is not stopped")
	b.thaw()
	b.signal(unix.SIGSTOP)
	b.await("it to be seen stopped", func() bool { return b.in.Stopped() != "" })
	require.Contains(t, b.in.Stopped(), "signal")
	b.signal(unix.SIGCONT)
	b.await("it to be seen running", func() bool { return b.in.Stopped() == "" })
	b.goesOn(tick, b.ticks(tick))
	b.signal(unix.SIGSTOP)
	b.await("it to be seen stopped", func() bool { return b.in.Stopped() != "" })
	b.stop()
	require.Empty(t, b.in.Stopped(), "gone is not stopped")
}
