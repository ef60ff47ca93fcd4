package gvisor

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

func program(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o700))
	return path
}

func TestBuildsAreKeptByContent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "builds")
	b, err := openBuilds(dir)
	require.NoError(t, err)
	one, err := b.install(program(t, "one"))
	require.NoError(t, err)
	same, err := b.install(program(t, "one"))
	require.NoError(t, err)
	require.Equal(t, one, same)
	require.Len(t, one.hash, 16)
	guest, err := b.keepGuest(program(t, "agent"))
	require.NoError(t, err)
	info, err := os.Stat(b.guest(guest))
	require.NoError(t, err)
	require.True(t, info.ModTime().Equal(keptTime), "gVisor restores no program of another time")
	require.Equal(t, os.FileMode(0o755), info.Mode().Perm())

	// A file that has not changed is not read again, by another agent neither.
	path := program(t, "two")
	two, err := b.install(path)
	require.NoError(t, err)
	b, err = openBuilds(dir)
	require.NoError(t, err)
	before := len(b.hashes)
	require.Positive(t, before)
	again, err := b.install(path)
	require.NoError(t, err)
	require.Equal(t, two, again)
	require.Len(t, b.hashes, before)
	// One that has is.
	require.NoError(t, os.WriteFile(path, []byte("six"), 0o700))
	other, err := b.install(path)
	require.NoError(t, err)
	require.NotEqual(t, two.hash, other.hash)
}

func TestRetire(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "builds")
	b, err := openBuilds(dir)
	require.NoError(t, err)
	current, err := b.install(program(t, "current"))
	require.NoError(t, err)
	used, err := b.install(program(t, "used"))
	require.NoError(t, err)
	old, err := b.install(program(t, "old"))
	require.NoError(t, err)
	guest, err := b.keepGuest(program(t, "agent"))
	require.NoError(t, err)
	require.NoError(t, b.retire(nil, current.path), "what this process has started with is held")
	for _, path := range []string{current.path, used.path, old.path, b.guest(guest)} {
		require.FileExists(t, path)
	}
	b, err = openBuilds(dir) // the next agent
	require.NoError(t, err)
	require.NoError(t, b.retire(map[string]bool{used.path: true}, current.path))
	for _, path := range []string{old.path, b.guest(guest)} {
		require.NoFileExists(t, filepath.Dir(path))
	}
	require.FileExists(t, current.path)
	require.FileExists(t, used.path)
	require.FileExists(t, filepath.Join(dir, hashCache))
	_, err = b.find(old.hash)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.ErrorContains(t, err, old.hash)
	require.Contains(t, fault.HintOf(err), old.path)
}

func TestFindNamesWhatToDo(t *testing.T) {
	t.Parallel()
	_, err := find("/nowhere/runsc")
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.Contains(t, fault.HintOf(err), "make runsc")
}

func TestNewSaysWhyNot(t *testing.T) {
	t.Parallel()
	o := options(filepath.Join(t.TempDir(), "builds"))
	o.Runsc = program(t, "#!/bin/sh\nexit 1\n")
	_, err := New(t.Context(), o)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.NotEmpty(t, fault.HintOf(err))
	o.ProbeUID = 0
	_, err = New(t.Context(), o)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
}

// TestUpgrade: what was captured with one build of runsc is restored with that build after another
// has become the current one, until the build is gone.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(world, "upgrade")
	before, err := New(t.Context(), options(dir))
	require.NoError(t, err)
	b := newBoxOf(t, before)
	b.boot(runtime.BootOptions{})
	b.run("echo kept >/root/file")
	c, _ := b.capture(runtime.CaptureOptions{})
	disk, _ := b.capture(runtime.CaptureOptions{DiskOnly: true})
	record, err := b.in.Record()
	require.NoError(t, err)

	o := options(dir)
	o.Runsc = otherRunsc(t)
	o.ProbeGuest = "" // runsc itself is run
	after, err := New(t.Context(), o)
	require.NoError(t, err)
	require.NotEqual(t, before.Identity()["build"], after.Identity()["build"])
	needed, err := after.NeededBy(record)
	require.NoError(t, err)
	files, err := after.Files(c)
	require.NoError(t, err)
	require.ElementsMatch(t, needed, files)
	used := map[string]bool{}
	for _, f := range files {
		require.FileExists(t, f)
		used[f] = true
	}
	require.NoError(t, after.Retire(used))
	in, err := after.Adopt(b.ctx(), b.spec, record)
	require.NoError(t, err, "a running one is adopted with its own build")
	in.Detach()

	n := newBoxOf(t, after)
	n.token, n.gen = b.token, b.gen
	n.restore(c)
	require.Equal(t, "kept", n.run("cat /root/file"))
	exe, err := os.Readlink("/proc/" + strconv.Itoa(n.in.rec.PID) + "/exe")
	require.NoError(t, err)
	require.Equal(t, before.build.path, exe)
	again, _ := n.capture(runtime.CaptureOptions{}) // by the build that runs it
	rec, err := parseCapture(again)
	require.NoError(t, err)
	require.Equal(t, before.Identity()["build"], rec.Identity.Build)
	d := newBoxOf(t, after)
	d.boot(runtime.BootOptions{From: &disk})
	require.Equal(t, "kept", d.run("cat /root/file"), "a disk is booted by the build that wrote it")
	require.Equal(t, before.Identity()["build"], d.in.rec.Identity.Build)

	require.NoError(t, os.RemoveAll(filepath.Dir(before.build.path)))
	_, err = after.Restore(n.ctx(), newBoxOf(t, after).spec, c)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.ErrorContains(t, err, before.build.hash)
}

// otherRunsc is the same program with another content.
func otherRunsc(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runsc")
	from, err := os.Open(os.Getenv("ROOST_RUNSC"))
	require.NoError(t, err)
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(to, from)
	require.NoError(t, err)
	_, err = io.Copy(to, strings.NewReader("another build"))
	require.NoError(t, err)
	require.NoError(t, to.Close())
	return path
}

// TestRefusals: what cannot be loaded is refused before anything is started.
func TestRefusals(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	c, _ := b.capture(runtime.CaptureOptions{})
	change := func(change func(*captureRecord)) runtime.Capture {
		rec, err := parseCapture(c)
		require.NoError(t, err)
		change(&rec)
		raw, err := json.Marshal(rec)
		require.NoError(t, err)
		return runtime.Capture{Dir: c.Dir, Record: raw}
	}
	for name, bad := range map[string]runtime.Capture{
		"cpu":      change(func(r *captureRecord) { r.Identity.CPU = "other" }),
		"machine":  change(func(r *captureRecord) { r.Identity.Machine = "other" }),
		"driver":   change(func(r *captureRecord) { r.Identity.Driver = "other" }),
		"disk":     change(func(r *captureRecord) { r.Identity.Disk = "other" }),
		"build":    change(func(r *captureRecord) { r.Identity.Build = "0123456789abcdef" }),
		"guest":    change(func(r *captureRecord) { r.Guest = "0123456789abcdef" }),
		"template": change(func(r *captureRecord) { r.Template = "other" }),
		"kind":     change(func(r *captureRecord) { r.Kind = diskKind }),
	} {
		_, err := b.rt.Restore(b.ctx(), newBox(t).spec, bad)
		require.True(t, fault.Is(err, fault.FailedPrecondition), "%s: %v", name, err)
	}
	spec := newBox(t).spec
	for _, bad := range []func(*runtime.Spec){
		func(s *runtime.Spec) { s.UID = 0 }, func(s *runtime.Spec) { s.Template.Tree = "" },
		func(s *runtime.Spec) { s.RunDir += strings.Repeat("/long", 20) }, func(s *runtime.Spec) { s.Resources.DiskSizeMB = 0 },
	} {
		s := spec
		bad(&s)
		_, err := b.rt.Boot(b.ctx(), s, runtime.BootOptions{})
		require.Error(t, err)
	}
}

// TestDamaged: a flipped bit in any file is noticed before the sandbox is anybody's.
func TestDamaged(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	b.run("head -c 20000000 /dev/urandom >/root/f")
	c, _ := b.capture(runtime.CaptureOptions{})
	for _, name := range saverOf(runtime.CaptureOptions{}).files {
		path := filepath.Join(c.Dir, name)
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		flipped := append([]byte(nil), whole...)
		flipped[len(flipped)*2/3] ^= 1
		for _, bad := range [][]byte{flipped, whole[:len(whole)-1]} {
			require.NoError(t, os.WriteFile(path, bad, 0o600))
			n := newBox(t)
			_, err = b.rt.Restore(b.ctx(), n.spec, c)
			require.ErrorContains(t, err, name)
			require.Equal(t, fault.DataLoss, fault.KindOf(err))
			n.nothingLeft()
		}
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	b.restored(c)
}
