package gvisor

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// TestAdopt: another agent takes over; what was printed meanwhile is not lost.
func TestAdopt(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	record, err := b.in.Record()
	require.NoError(t, err)
	b.in.Detach()
	b.run("echo while nobody looked >/proc/1/fd/1")
	in, err := b.rt.Adopt(b.ctx(), b.spec, record)
	require.NoError(t, err)
	b.in = in.(*instance)
	again, err := b.in.Record()
	require.NoError(t, err)
	require.JSONEq(t, string(record), string(again))
	c, _ := b.capture(runtime.CaptureOptions{})
	b.restored(c)
	require.NoError(t, b.in.Stop(b.ctx()))
	text, err := b.rt.ConsoleOf(b.spec)
	require.NoError(t, err)
	require.Contains(t, string(text), "while nobody looked")
	_, err = b.rt.Adopt(b.ctx(), b.spec, record)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	var rec map[string]any
	require.NoError(t, json.Unmarshal(record, &rec))
	rec["pid"] = os.Getpid() // a pid that was given to another process since
	stolen, err := json.Marshal(rec)
	require.NoError(t, err)
	_, err = b.rt.Adopt(b.ctx(), b.spec, stolen)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

// TestCancelled: a start that is cancelled at any moment leaves nothing (end looks).
func TestCancelled(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{Template: true})
	c, _ := b.capture(runtime.CaptureOptions{})
	for i := range 12 {
		n := newBox(t)
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(i)*17*time.Millisecond, cancel)
		in, err := n.rt.Restore(ctx, n.spec, c)
		timer.Stop()
		cancel()
		if err != nil {
			require.True(t, fault.Is(err, fault.Canceled), "%v", err)
			n.nothingLeft()
			continue
		}
		n.in = in.(*instance)
	}
}

// TestCancelledCapture: a capture that its caller gives up at any moment costs the sandbox nothing.
func TestCancelledCapture(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	b.run("head -c 60000000 /dev/urandom >/root/f")
	sum := b.run("md5sum /root/f")
	for i := range 8 {
		b.freeze()
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(i)*15*time.Millisecond, cancel)
		dir := t.TempDir()
		_, _, err := b.in.Capture(ctx, dir, runtime.CaptureOptions{DiskOnly: i%2 == 1})
		timer.Stop()
		cancel()
		if err != nil {
			require.True(t, fault.Is(err, fault.Canceled), "%v", err)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		}
		b.thaw()
		require.Equal(t, "lives", b.run("echo lives"))
	}
	c, _ := b.capture(runtime.CaptureOptions{})
	require.Equal(t, sum, b.restored(c).run("md5sum /root/f"))
}

// TestOrphanedCommand: an agent that is killed in the middle of a start leaves a runsc command
// that works on; Discard ends it and what it has started.
func TestOrphanedCommand(t *testing.T) {
	t.Parallel()
	for i := range 6 {
		b := newBox(t)
		hash, err := b.rt.builds.keepGuest(guest)
		require.NoError(t, err)
		st := start{build: b.rt.build, verb: "run", rec: instanceRecord{Guest: hash, Tree: tree, VCPUs: 1, MemoryMB: 256, DiskMB: 256}}
		require.NoError(t, b.rt.prepare(b.spec, &st.rec))
		c, theirs, err := newConsole(b.spec.RunDir)
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() {
			ended <- b.rt.command(st.build, b.spec.RunDir, st.rec.Leaf, b.spec.Port.Namespace, st.startArgs(b.spec.RunDir), theirs).run(context.Background())
		}()
		b.awaitCommand()
		time.Sleep(time.Duration(i) * 30 * time.Millisecond) // any moment will do
		require.NoError(t, b.rt.Discard(b.ctx(), b.spec))
		if err := <-ended; err != nil {
			t.Log(err) // it was killed, at whatever moment
		}
		require.NoError(t, theirs.Close())
		c.close()
		b.nothingLeft()
		require.NoError(t, b.rt.Discard(b.ctx(), b.spec), "idempotent")
	}
}

// TestPace: a burst is let through, more waits, and not for a sandbox that has ended.
func TestPace(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	p := pace{over: over}
	p.wait(consoleRate / 2)
	waited := make(chan struct{})
	go func() {
		p.wait(consoleRate * 3600)
		close(waited)
	}()
	select {
	case <-waited:
		require.Fail(t, "an hour's worth was let through")
	case <-time.After(50 * time.Millisecond):
	}
	close(over)
	<-waited
	p.wait(consoleRate * 3600)
}

// TestConsole: the newest MiB is kept and who prints a little much is not held up.
func TestConsole(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	b.run("yes 0123456789012345678901234567890123456789 | head -c 3000000 >/proc/1/fd/1; echo the end >/proc/1/fd/1")
	require.NoError(t, b.in.Stop(b.ctx()))
	text, err := b.in.Console()
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(text), "the end\n"))
	require.LessOrEqual(t, len(text), 2*consoleHalf)
	require.Greater(t, len(text), consoleHalf)
}

// awaitCommand waits until a runsc command of the box runs.
func (b *box) awaitCommand() {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		found := false
		require.NoError(b.t, eachProcess(func(pid int) { found = found || carries(pid, []byte(rootFlag(b.spec.RunDir))) }))
		return found
	}, limit, time.Millisecond)
}
