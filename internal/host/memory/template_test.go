package memory

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

func contents(t *testing.T, f *os.File) []byte {
	t.Helper()
	st, err := f.Stat()
	require.NoError(t, err)
	b := make([]byte, st.Size())
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

func TestSealNeedsTheWriterDead(t *testing.T) {
	t.Parallel()
	f, err := NewTemplate("x", 16*PageSize)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	b, err := unix.Mmap(int(f.Fd()), 0, 16*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	require.True(t, fault.Is(Seal(f), fault.FailedPrecondition))
	require.Error(t, CheckSealed(f))
	_, err = Save(context.Background(), f, filepath.Join(t.TempDir(), "x"))
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.NoError(t, unix.Munmap(b))
	require.NoError(t, Seal(f))
	require.NoError(t, Seal(f))
	require.NoError(t, CheckSealed(f))
	_, err = f.WriteAt([]byte("x"), 0)
	require.ErrorIs(t, err, unix.EPERM)
	require.ErrorIs(t, f.Truncate(0), unix.EPERM)
	require.ErrorIs(t, f.Truncate(1<<20), unix.EPERM)
	_, err = unix.Mmap(int(f.Fd()), 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.ErrorIs(t, err, unix.EPERM)
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE)
	require.ErrorIs(t, err, unix.EPERM)
	_, err = NewTemplate("x", 1)
	require.True(t, fault.Is(err, fault.Invalid))
}

func TestUnprivilegedUIDCannotChangeATemplate(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root to become another uid")
	}
	f := template(t, 16)
	// The child cannot reach the test binary in a private folder by path: descriptor 4 is it.
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer func() { require.NoError(t, self.Close()) }()
	cmd := exec.CommandContext(t.Context(), "/proc/self/fd/4")
	cmd.ExtraFiles = []*os.File{f, self}
	cmd.Env = []string{helperEnv + "=intruder", fmt.Sprintf("ROOST_AGENT_FD=/proc/%d/fd/%d", os.Getpid(), f.Fd())}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 365001, Gid: 365001}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Empty(t, string(out), "these worked")
}

func TestSaveAndLoad(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, pages := range []int{1, 512, 1300, 4096} {
		f := template(t, pages)
		dir := t.TempDir()
		path := filepath.Join(dir, "base.mem")
		info, err := Save(ctx, f, path)
		require.NoError(t, err)
		require.Equal(t, int64(pages/2*PageSize), info.Used)
		var st unix.Stat_t
		require.NoError(t, unix.Stat(path, &st))
		require.LessOrEqual(t, st.Blocks*512, info.Used+64<<10, "sparse")
		g, again, err := Load(ctx, path, info.Bytes)
		require.NoError(t, err)
		require.Equal(t, info, again)
		require.NoError(t, CheckSealed(g))
		require.Equal(t, contents(t, f), contents(t, g))
		require.LessOrEqual(t, resident(g), info.Used, "zero pages take no RAM")
		read, err := ReadInfo(path, info.Bytes)
		require.NoError(t, err)
		require.Equal(t, info, read)
		_, _, err = Load(ctx, path, info.Bytes+PageSize)
		require.Error(t, err)
		require.NoError(t, g.Close())
		require.Equal(t, "base.mem", leftovers(t, dir))
	}
	_, _, err := Load(ctx, filepath.Join(t.TempDir(), "none"), PageSize)
	require.True(t, fault.Is(err, fault.NotFound))
}

func TestEqualMemoriesHaveEqualIDs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := Save(t.Context(), template(t, 600), filepath.Join(dir, "a"))
	require.NoError(t, err)
	b, err := Save(t.Context(), template(t, 600), filepath.Join(dir, "b"))
	require.NoError(t, err)
	c, err := Save(t.Context(), template(t, 602), filepath.Join(dir, "c"))
	require.NoError(t, err)
	require.Equal(t, a.ID, b.ID)
	require.NotEqual(t, a.ID, c.ID)
}

func TestDamagedTemplatesAreRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "base.mem")
	const bytes = 64 * PageSize
	_, err := Save(t.Context(), template(t, 64), path)
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	st, err := f.Stat()
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		at := r.Int64N(32 * PageSize)
		if r.IntN(3) == 0 {
			at = bytes + r.Int64N(st.Size()-bytes)
		}
		flip(t, f, at, 1<<r.IntN(8), func() {
			_, _, err = Load(t.Context(), path, bytes)
			require.Error(t, err, "byte %d", at)
		})
	}
	g, _, err := Load(t.Context(), path, bytes)
	require.NoError(t, err)
	require.NoError(t, g.Close())
}

// flip changes one byte while do runs.
func flip(t *testing.T, f *os.File, at int64, mask byte, do func()) {
	t.Helper()
	b := make([]byte, 1)
	_, err := f.ReadAt(b, at)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{b[0] ^ mask}, at)
	require.NoError(t, err)
	do()
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
}

func TestCacheSharesOneMemory(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "base.mem")
	const bytes = 1024 * PageSize
	_, err := Save(t.Context(), template(t, 1024), path)
	require.NoError(t, err)
	c := NewCache()
	var wg sync.WaitGroup
	got := make([]*Template, 20)
	for i := range got {
		wg.Go(func() {
			var err error
			got[i], err = c.Get(context.Background(), path, bytes)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, g := range got {
		require.Same(t, got[0].File, g.File)
	}
	list := c.List()
	require.Len(t, list, 1)
	require.Equal(t, 20, list[0].Users)
	require.Equal(t, int64(bytes/2), list[0].ResidentBytes)
	for _, g := range got[1:] {
		g.Release()
		g.Release()
	}
	_, err = c.Get(t.Context(), path, 2*bytes)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	n, err := c.Evict(0)
	require.NoError(t, err)
	require.Zero(t, n, "still used")
	got[0].Release()
	now := time.Now()
	c.now = func() time.Time { return now.Add(30 * time.Second) }
	n, err = c.Evict(time.Minute)
	require.NoError(t, err)
	require.Zero(t, n, "not idle for long")
	n, err = c.Evict(time.Second)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.ErrorIs(t, got[0].File.Close(), os.ErrClosed)
}

func TestCacheTriesAFailedLoadAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "base.mem")
	c := NewCache()
	_, err := c.Get(t.Context(), path, 64*PageSize)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	_, err = Save(t.Context(), template(t, 64), path)
	require.NoError(t, err)
	tmpl, err := c.Get(t.Context(), path, 64*PageSize)
	require.NoError(t, err)
	tmpl.Release()
	_, err = c.Evict(0)
	require.NoError(t, err)
}

func TestPutChecksWhatAVMMHandsOut(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "base.mem")
	const pages = 1024
	orig := template(t, pages)
	info, err := Save(ctx, orig, path)
	require.NoError(t, err)
	good := contents(t, orig)
	put := func(c *Cache, edit func(b []byte), seal bool) error {
		b := append([]byte(nil), good...)
		edit(b)
		f, err := NewTemplate("back", int64(len(b)))
		require.NoError(t, err)
		_, err = f.WriteAt(b, 0)
		require.NoError(t, err)
		if seal {
			require.NoError(t, Seal(f))
		}
		tmpl, err := c.Put(ctx, path, info.Bytes, f)
		if err == nil {
			tmpl.Release()
			return nil
		}
		require.ErrorIs(t, f.Close(), os.ErrClosed)
		return err
	}
	c := NewCache()
	require.Error(t, put(c, func([]byte) {}, false), "not sealed")
	require.Error(t, put(c, func(b []byte) { b[7] ^= 1 }, true), "another byte")
	require.Error(t, put(c, func(b []byte) { b[len(b)-1] = 1 }, true), "data where the template has none")
	require.Empty(t, c.List())
	require.NoError(t, put(c, func([]byte) {}, true))
	require.NoError(t, put(c, func([]byte) {}, true), "a second one is closed")
	require.Len(t, c.List(), 1)
	_, err = c.Evict(0)
	require.NoError(t, err)
}
