package loop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// limit is for what must end, on whatever machine.
const limit = 2 * time.Minute

var count atomic.Int64

// newRegistry has a prefix of its own; at the end of the test no loop of it may be left.
func newRegistry(t *testing.T) *Registry {
	t.Helper()
	if _, err := os.Stat(controlNode); err != nil {
		t.Skip("needs loop devices: modprobe loop")
	}
	r := NewRegistry(fmt.Sprintf("roost-loop-test%d-%d", os.Getpid(), count.Add(1)))
	t.Cleanup(func() { none(t, r) })
	return r
}

// none waits until no loop of ours is left: a child of this process that is being started may
// have the descriptors a moment longer.
func none(t *testing.T, r *Registry) {
	t.Helper()
	require.Eventually(t, func() bool {
		list, err := r.List()
		return err == nil && len(list) == 0
	}, limit, time.Millisecond)
}

func file(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, CreateSparse(path, size, 0o600))
	return path
}

func acquire(t *testing.T, r *Registry, path string, readOnly bool) *Ref {
	t.Helper()
	ref, err := r.Acquire(t.Context(), path, readOnly)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, ref.Release()) })
	return ref
}

func TestShared(t *testing.T) {
	t.Parallel()
	r, path := newRegistry(t), file(t, 1<<20)
	require.NoError(t, os.WriteFile(path, []byte("the base"), 0o600))
	require.NoError(t, os.Truncate(path, 1<<20))
	other := filepath.Join(t.TempDir(), "other name")
	require.NoError(t, os.Link(path, other))
	a, b := acquire(t, r, path, true), acquire(t, r, other, true)
	require.Equal(t, a.Path, b.Path)
	require.Equal(t, a.Dev, b.Dev)
	list, err := r.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, 2, list[0].Users)
	require.Equal(t, path, list[0].Path)
	require.True(t, list[0].ReadOnly)

	got, err := os.ReadFile(a.Path)
	require.NoError(t, err)
	require.Equal(t, "the base", string(got[:8]))
	require.NoError(t, a.Release())
	require.NoError(t, a.Release(), "twice is once")
	require.True(t, fault.Is(r.Detach(t.Context(), list[0].Name), fault.FailedPrecondition))
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Remove(other))
	list, err = r.List()
	require.NoError(t, err)
	require.Equal(t, 1, list[0].Users)
	require.True(t, list[0].Deleted)
	require.NoError(t, b.Release())
	none(t, r)
	require.NoError(t, r.Detach(t.Context(), list[0].Name))
}

func TestWriterIsAlone(t *testing.T) {
	t.Parallel()
	r, path := newRegistry(t), file(t, 1<<20)
	ref := acquire(t, r, path, false)
	_, err := r.Acquire(t.Context(), path, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	_, err = NewRegistry(r.prefix).Acquire(t.Context(), path, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	_, err = newRegistry(t).Acquire(t.Context(), path, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "not ours: %v", err)

	node, err := os.OpenFile(ref.Path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = node.WriteString("written")
	require.NoError(t, err)
	require.NoError(t, node.Sync())
	require.NoError(t, node.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "written", string(b[:7]))

	require.NoError(t, os.Truncate(path, 2<<20))
	require.NoError(t, r.SetCapacity(ref))
	require.EqualValues(t, 2<<20, size(t, ref.Path))
	require.NoError(t, ref.Release())
	require.True(t, fault.Is(r.SetCapacity(ref), fault.FailedPrecondition))
	acquire(t, r, path, false)
}

// A loop that outlived its user, since somebody looks at it, has the size that its file had then.
func TestFoundLoopHasTheFilesSize(t *testing.T) {
	t.Parallel()
	r, path := newRegistry(t), file(t, 1<<20)
	ref := acquire(t, r, path, false)
	looker, err := os.Open(ref.Path)
	require.NoError(t, err)
	require.NoError(t, ref.Release())
	require.NoError(t, os.Truncate(path, 4<<20))
	again := acquire(t, r, path, false)
	require.Equal(t, ref.Path, again.Path)
	require.EqualValues(t, 4<<20, size(t, again.Path))
	require.NoError(t, looker.Close())
}

func size(t *testing.T, node string) int64 {
	t.Helper()
	f, err := os.Open(node)
	require.NoError(t, err)
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	return end
}

// TestStaleUser: what somebody still has open is found again after a restart, and never pulled
// from under them.
func TestStaleUser(t *testing.T) {
	t.Parallel()
	r, path := newRegistry(t), file(t, 1<<20)
	for _, readOnly := range []bool{true, false} {
		ref := acquire(t, r, path, readOnly)
		stale, err := os.Open(ref.Path) // as a table would
		require.NoError(t, err)
		require.NoError(t, ref.Release())
		err = r.Detach(t.Context(), filepath.Base(ref.Path))
		require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
		again := acquire(t, NewRegistry(r.prefix), path, readOnly)
		require.Equal(t, ref.Path, again.Path)
		require.NoError(t, again.Release())
		require.NoError(t, stale.Close())
		none(t, r)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	r, shared := newRegistry(t), file(t, 1<<20)
	var group sync.WaitGroup
	errs := make(chan error, 64)
	for i := range 16 {
		own := file(t, 1<<20)
		group.Go(func() {
			for range 4 {
				errs <- once(t.Context(), r, shared, own, i)
			}
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	none(t, r)
	require.Empty(t, r.files)
}

// once holds a shared loop and one of its own, and looks that they stand for their files.
func once(ctx context.Context, r *Registry, shared, own string, i int) error {
	a, err := r.Acquire(ctx, shared, true)
	if err != nil {
		return err
	}
	b, err := r.Acquire(ctx, own, false)
	if err != nil {
		return errors.Join(err, a.Release())
	}
	text := fmt.Sprintf("own %02d", i)
	err = os.WriteFile(own, []byte(text), 0o600)
	if err == nil {
		err = os.Truncate(own, 1<<20)
	}
	got, readErr := os.ReadFile(b.Path)
	if readErr == nil && !strings.HasPrefix(string(got), text) {
		readErr = fmt.Errorf("%s is not %s", b.Path, own)
	}
	return errors.Join(err, readErr, b.Release(), a.Release())
}

// other is another process that acquires a file.
type other struct {
	*exec.Cmd
	in   io.Closer
	path string
}

func start(t *testing.T, r *Registry, path, write string) *other {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "ROOST_TEST_LOOP_HOLD="+path, "ROOST_TEST_LOOP_PREFIX="+r.prefix, "ROOST_TEST_LOOP_WRITE="+write)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	return &other{cmd, in, strings.TrimSpace(line)}
}

// TestProcesses: several processes share a file's loop, one writes; killed, they leave nothing.
func TestProcesses(t *testing.T) {
	t.Parallel()
	r, path := newRegistry(t), file(t, 1<<20)
	var others [6]*other
	var group sync.WaitGroup
	for i := range others {
		group.Go(func() { others[i] = start(t, r, path, "") })
	}
	group.Wait()
	ref := acquire(t, r, path, true)
	for _, o := range others {
		require.Equal(t, ref.Path, o.path)
	}
	writer := start(t, r, path, "yes")
	require.NotEqual(t, ref.Path, writer.path)
	_, err := r.Acquire(t.Context(), path, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)

	require.NoError(t, ref.Release())
	for _, o := range append(others[:], writer) {
		require.NoError(t, o.Process.Kill())
		_ = o.Wait() // "signal: killed"
	}
	none(t, r)
	acquire(t, r, path, false)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	_, err := r.Acquire(t.Context(), filepath.Join(t.TempDir(), "none"), true)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	_, err = r.Acquire(t.Context(), t.TempDir(), true)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	path := file(t, 1<<20)
	held, err := os.Open(path)
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, unix.Flock(int(held.Fd()), unix.LOCK_EX))
	_, err = r.Acquire(ended, path, true)
	require.True(t, fault.Is(err, fault.Canceled), "%v", err)
	require.NoError(t, r.Detach(t.Context(), "loop99999"))
	require.Empty(t, r.files)
}

func TestDirectIO(t *testing.T) {
	t.Parallel()
	r, path := newRegistry(t), file(t, 1<<20)
	r.DirectIO()
	ref := acquire(t, r, path, false)
	require.NotZero(t, ref.shared.device.info.Flags&unix.LO_FLAGS_AUTOCLEAR)
	b, err := os.ReadFile(ref.Path)
	require.NoError(t, err)
	require.Len(t, b, 1<<20)
}

func TestCreateSparse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sparse")
	require.Error(t, CreateSparse(path, -1, 0o600))
	require.NoFileExists(t, path)
	err := CreateSparse(path, 1<<62, 0o600) // larger than any file
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	require.NoFileExists(t, path)
	require.NoError(t, CreateSparse(path, 5<<30, 0o666))
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 5<<30, st.Size())
	require.Equal(t, os.FileMode(0o666), st.Mode().Perm())
	require.True(t, fault.Is(CreateSparse(path, 1, 0o600), fault.AlreadyExists))
	require.FileExists(t, path)
}
