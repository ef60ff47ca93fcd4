package uffd

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

func TestRegions(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	one := func(addr, size, offset uint64, more string) string {
		return fmt.Sprintf(`{"base_host_virt_addr":%d,"size":%d,"offset":%d%s}`, addr, size, offset, more)
	}
	const page = `,"page_size":4096,"page_size_kib":4096`
	for _, ok := range []string{
		"[" + one(mb, 2*mb, 0, page) + "]",
		"[" + one(mb, 2*mb, 0, `,"page_size":4096`) + "]",
		"[" + one(mb, 2*mb, 0, `,"page_size_kib":4096`) + "]",
		"[" + one(mb, 2*mb, 0, `,"page_size_kib":4,"more":1`) + "]",
		"[" + one(8*mb, mb, mb, page) + "," + one(mb, mb, 0, page) + "]",
	} {
		list, err := parseRegions([]byte(ok), 2*mb)
		require.NoError(t, err, ok)
		s := space(list)
		for _, n := range []uint32{0, 255, 256, 511} {
			addr, first, end := s.at(n)
			back, found := s.page(addr)
			require.True(t, found)
			require.Equal(t, n, back)
			require.LessOrEqual(t, first, n)
			require.Greater(t, end, n)
		}
	}
	for name, bad := range map[string]string{
		"not JSON":          "regions",
		"not a list":        "{}",
		"none":              "[]",
		"null":              "null",
		"huge pages":        "[" + one(mb, 2*mb, 0, `,"page_size":2097152,"page_size_kib":2097152`) + "]",
		"no page size":      "[" + one(mb, 2*mb, 0, "") + "]",
		"negative":          `[{"base_host_virt_addr":-1,"size":1,"offset":0,"page_size":4096}]`,
		"misaligned addr":   "[" + one(mb+1, 2*mb, 0, page) + "]",
		"misaligned size":   "[" + one(mb, mb+1, 0, page) + "," + one(8*mb, mb-1, mb+1, page) + "]",
		"at 0":              "[" + one(0, 2*mb, 0, page) + "]",
		"empty":             "[" + one(mb, 0, 0, page) + "," + one(8*mb, 2*mb, 0, page) + "]",
		"too small":         "[" + one(mb, mb, 0, page) + "]",
		"too large":         "[" + one(mb, 4*mb, 0, page) + "]",
		"gap":               "[" + one(mb, mb, 0, page) + "," + one(8*mb, mb, 2*mb, page) + "]",
		"same part twice":   "[" + one(mb, mb, 0, page) + "," + one(8*mb, mb, 0, page) + "]",
		"addresses overlap": "[" + one(mb, mb, 0, page) + "," + one(mb, mb, mb, page) + "]",
		"address overflow":  "[" + one(^uint64(0)-mb+1, 2*mb, 0, page) + "]",
		"size overflow":     "[" + one(mb, ^uint64(0)&^4095, 0, page) + "]",
		"offset overflow":   "[" + one(mb, mb, 0, page) + "," + one(8*mb, mb, ^uint64(0)&^4095, page) + "]",
		"in the kernel":     "[" + one(1<<63, 2*mb, 0, page) + "]",
		"too many":          "[" + strings.Repeat(one(mb, 4096, 0, page)+",", 64) + one(mb, 4096, 0, page) + "]",
	} {
		_, err := parseRegions([]byte(bad), 2*mb)
		require.True(t, fault.Is(err, fault.Invalid), "%s: %v", name, err)
	}
}

func FuzzRegions(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":1048576,"size":1048576,"offset":0,"page_size":4096,"page_size_kib":4096}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parseRegions(raw, 1<<20)
		if err != nil {
			return
		}
		require.NoError(t, checkRegions(list, 1<<20))
	})
}

// What comes over the socket is refused, and no descriptor of it kept.
func TestHandshakesOfAnEnemy(t *testing.T) {
	t.Parallel()
	zero, err := os.Open("/dev/zero")
	require.NoError(t, err)
	defer func() { _ = zero.Close() }()
	fd := int(zero.Fd())
	for name, say := range map[string]func(c int){
		"nothing":         func(int) {},
		"no descriptor":   func(c int) { _, _ = unix.Write(c, []byte("[]")) },
		"half a list":     func(c int) { _ = unix.Sendmsg(c, []byte("[{"), unix.UnixRights(fd), nil, 0) },
		"two descriptors": func(c int) { _ = unix.Sendmsg(c, []byte("["), unix.UnixRights(fd, fd), nil, 0) },
		"one and another": func(c int) {
			_ = unix.Sendmsg(c, []byte("["), unix.UnixRights(fd), nil, 0)
			_ = unix.Sendmsg(c, []byte("1"), unix.UnixRights(fd), nil, 0)
		},
		"very many": func(c int) { _ = unix.Sendmsg(c, []byte("[]"), unix.UnixRights(fd, fd, fd, fd, fd, fd, fd), nil, 0) },
		"too long": func(c int) {
			_ = unix.Sendmsg(c, []byte("["), unix.UnixRights(fd), nil, 0)
			_, _ = unix.Write(c, make([]byte, maxHandshake))
		},
	} {
		_, err := shakeHands(t, say)
		require.True(t, fault.Is(err, fault.Invalid), "%s: %v", name, err)
	}
	p, err := shakeHands(t, func(c int) { _ = unix.Sendmsg(c, []byte("[]"), unix.UnixRights(fd), nil, 0) })
	require.NoError(t, err)
	_, err = takeUserfault(p.uffd)
	require.ErrorContains(t, err, "not a userfaultfd")
	p.close()
}

func shakeHands(t *testing.T, say func(c int)) (*peer, error) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	f, err := l.(*net.UnixListener).File()
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Connect(c, &unix.SockaddrUnix{Name: path}))
	go func() {
		say(c)
		_ = unix.Close(c)
	}()
	return accept(f, -1)
}

func TestStopWakesAccept(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	f, err := l.(*net.UnixListener).File()
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	stop, err := stopOn(ctx)
	require.NoError(t, err)
	defer func() { _ = unix.Close(stop) }()
	done := make(chan error, 1)
	go func() { _, err := accept(f, stop); done <- err }()
	cancel()
	require.ErrorIs(t, <-done, errStopped)
}

func TestBits(t *testing.T) {
	t.Parallel()
	words := make([]uint64, 4)
	setBits(words, 60, 70)
	require.EqualValues(t, 60, alike(words, 0, 256, false))
	require.EqualValues(t, 70, alike(words, 60, 196, true))
	require.EqualValues(t, 5, alike(words, 60, 5, true))
	require.EqualValues(t, 126, alike(words, 130, 126, false))
	clearBits(words, 64, 64)
	require.EqualValues(t, 4, alike(words, 60, 100, true))
	require.EqualValues(t, 64, alike(words, 64, 100, false))
	setBits(words, 0, 256)
	require.EqualValues(t, 256, alike(words, 0, 256, true))
	require.Zero(t, alike(words, 3, 0, true))
}
