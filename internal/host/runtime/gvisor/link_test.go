package gvisor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// link makes a directory of its own for a capture.
func (b *box) link(c runtime.Capture) runtime.Capture {
	b.t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(b.spec.RunDir), "l")
	require.NoError(b.t, err)
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, "manifest.json"), []byte("x"), 0o600))
	for range 2 {
		rec, err := b.rt.Link(b.ctx(), c, dir, world)
		require.NoError(b.t, err)
		require.JSONEq(b.t, string(c.Record), string(rec))
	}
	return runtime.Capture{Dir: dir, Record: c.Record}
}

// TestLink: a linked capture restores while its source runs, and when the source and what it
// was linked from are gone.
func TestLink(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	b.run("echo kept >/root/file; sleep 1000 >/dev/null 2>&1 &")
	for _, kind := range []runtime.CaptureOptions{{}, {DiskOnly: true}} {
		c, _ := b.capture(kind)
		b.thaw()
		linked := b.link(b.link(c))
		raw, err := os.ReadFile(filepath.Join(linked.Dir, "manifest.json"))
		require.NoError(t, err)
		require.Equal(t, "x", string(raw), "what is not the runtime's is left alone")
		itself, err := b.rt.Link(b.ctx(), c, c.Dir, world)
		require.NoError(t, err)
		require.JSONEq(t, string(c.Record), string(itself))
		start := func() *box {
			if !kind.DiskOnly {
				return b.restored(linked)
			}
			n := newBoxOf(t, b.rt)
			n.boot(runtime.BootOptions{From: &linked})
			return n
		}
		require.Equal(t, "kept", start().run("cat /root/file"), "its source runs")
		require.NoError(t, os.RemoveAll(c.Dir))
		require.Equal(t, "kept", start().run("cat /root/file"), "the original is gone")
		if kind.DiskOnly {
			require.NoError(t, b.in.Stop(b.ctx()))
			require.Equal(t, "kept", start().run("cat /root/file"), "its source is gone")
		}
	}
}

func TestLinkRefuses(t *testing.T) {
	t.Parallel()
	rt, err := shared()
	require.NoError(t, err)
	dir := t.TempDir()
	c := smallCapture(t, filepath.Join(dir, "c"))
	to := filepath.Join(dir, "to")
	require.NoError(t, os.Mkdir(to, 0o700))
	elsewhere := filepath.Join(dir, "elsewhere")
	require.NoError(t, os.Mkdir(elsewhere, 0o700))
	_, err = rt.Link(t.Context(), c, to, elsewhere)
	require.Equal(t, fault.Invalid, fault.KindOf(err), "%v", err)
	require.NoError(t, os.WriteFile(filepath.Join(to, pagesFile), []byte("another"), 0o600))
	_, err = rt.Link(t.Context(), c, to, dir)
	require.ErrorIs(t, err, os.ErrExist)
	for name, spoil := range map[string]func(){
		"cut":     func() { require.NoError(t, os.Truncate(filepath.Join(c.Dir, pagesFile), 1)) },
		"missing": func() { require.NoError(t, os.Remove(filepath.Join(c.Dir, pagesFile))) },
		"a link": func() {
			require.NoError(t, os.Remove(filepath.Join(c.Dir, pagesFile)))
			require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(c.Dir, pagesFile)))
		},
		"record": func() { c.Record = json.RawMessage("{") },
		"names":  func() { c.Record = json.RawMessage(`{"files":[{"name":"../x"}]}`) },
	} {
		c = smallCapture(t, c.Dir)
		spoil()
		fresh := filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(fresh, 0o700))
		_, err = rt.Link(t.Context(), c, fresh, dir)
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%s: %v", name, err)
	}
}

// A data directory that is reached by another name is the same one.
func TestLinkByAnotherName(t *testing.T) {
	t.Parallel()
	rt, err := shared()
	require.NoError(t, err)
	dir := t.TempDir()
	c := smallCapture(t, filepath.Join(dir, "c"))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	to := filepath.Join(dir, "to")
	require.NoError(t, os.Mkdir(to, 0o700))
	for _, names := range [][2]string{{dir, link}, {link, dir}, {link, link}} {
		c.Dir = filepath.Join(names[0], "c")
		_, err = rt.Link(t.Context(), c, to, names[1])
		require.NoError(t, err)
	}
	require.FileExists(t, filepath.Join(to, pagesFile))
}

// smallCapture looks like a capture, as far as Link looks.
func smallCapture(t *testing.T, dir string) runtime.Capture {
	t.Helper()
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.Mkdir(dir, 0o700))
	names := saverOf(runtime.CaptureOptions{}).files
	for _, name := range names {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), 0o600))
	}
	files, err := describe(t.Context(), dir, names)
	require.NoError(t, err)
	raw, err := json.Marshal(captureRecord{Kind: fullKind, Files: files})
	require.NoError(t, err)
	return runtime.Capture{Dir: dir, Record: raw}
}

func TestSalvageSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	rt, err := shared()
	require.NoError(t, err)
	require.False(t, rt.Capabilities().DiskApart)
	_, err = rt.Salvage(t.Context(), runtime.Spec{ID: "x"}, nil, t.TempDir())
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.Contains(t, fault.HintOf(err), "--cold")
}

// TestStopped: a sentry that was stopped is told from one that is idle or frozen.
func TestStopped(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	require.Empty(t, b.in.Stopped())
	b.freeze()
	require.Empty(t, b.in.Stopped(), "frozen")
	b.thaw()
	says := func(text string) {
		t.Helper()
		require.Eventually(t, func() bool { return b.in.Stopped() == text }, limit, time.Millisecond)
	}
	require.NoError(t, unix.Kill(b.in.rec.PID, unix.SIGSTOP))
	says("its process was stopped by a signal")
	require.NoError(t, unix.Kill(b.in.rec.PID, unix.SIGCONT))
	says("")
	b.run("true")
	require.NoError(t, unix.Kill(b.in.rec.PID, unix.SIGSTOP))
	require.NoError(t, b.in.Stop(b.ctx()), "a stopped one ends all the same")
	require.Empty(t, b.in.Stopped())
}
