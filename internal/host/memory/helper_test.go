package memory

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func addrOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

// vmm is a process that maps a template privately, as a VMM does.
type vmm struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
	m   Mapping
}

func startVMM(t testing.TB, template *os.File) *vmm {
	t.Helper()
	st, err := template.Stat()
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"=vmm")
	cmd.ExtraFiles = []*os.File{template}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	v := &vmm{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(v.kill)
	require.True(t, v.out.Scan(), "the helper said nothing")
	v.m = Mapping{PID: cmd.Process.Pid, Bytes: st.Size()}
	_, err = fmt.Sscan(v.out.Text(), &v.m.Addr)
	require.NoError(t, err)
	return v
}

func (v *vmm) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

func (v *vmm) do(cmd string, page, count int, seed uint64) {
	v.t.Helper()
	_, err := fmt.Fprintln(v.in, cmd, page, count, seed)
	require.NoError(v.t, err)
	require.True(v.t, v.out.Scan(), "the helper is gone")
	require.Equal(v.t, "ok", v.out.Text())
}

// bytes is all memory as the process sees it.
func (v *vmm) bytes() []byte {
	v.t.Helper()
	p, err := openProcess(v.m, os.O_RDONLY)
	require.NoError(v.t, err)
	defer p.close()
	b := make([]byte, v.m.Bytes)
	require.NoError(v.t, p.read(b, 0))
	return b
}

// sameAs fails naming the first page that differs.
func (v *vmm) sameAs(want []byte) {
	v.t.Helper()
	got := v.bytes()
	for i := 0; i < len(want); i += PageSize {
		if !bytes.Equal(want[i:i+PageSize], got[i:i+PageSize]) {
			v.t.Fatalf("page %d differs", i/PageSize)
		}
	}
}

// template makes a sealed memory of pages: the first half has a pattern, the rest is zero.
func template(t testing.TB, pages int) *os.File {
	t.Helper()
	f, err := NewTemplate(t.Name(), int64(pages)*PageSize)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	b := make([]byte, pages/2*PageSize)
	pattern(b, 42)
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, Seal(f))
	return f
}

// saved is the memory of one sandbox on disk.
type saved struct {
	t      testing.TB
	dir    string
	mp     *Map
	layers []string
}

func newSaved(t testing.TB) *saved { return &saved{t: t, dir: t.TempDir()} }

// capture adds a generation, by way of the map's file.
func (s *saved) capture(v *vmm) Stats {
	s.t.Helper()
	mp, stats, err := CaptureFile(context.Background(), v.m, s.mp, s.dir, false)
	require.NoError(s.t, err)
	s.layers = append(s.layers, filepath.Join(s.dir, mp.LayerName(mp.Layers()-1)))
	s.publish(mp)
	return stats
}

func (s *saved) publish(mp *Map) {
	s.t.Helper()
	file := filepath.Join(s.dir, "map")
	require.NoError(s.t, WriteMap(file, mp))
	var err error
	s.mp, err = ReadMap(file)
	require.NoError(s.t, err)
	require.Equal(s.t, mp.Marshal(), s.mp.Marshal())
	for i, l := range s.layers {
		st, err := os.Stat(l)
		require.NoError(s.t, err)
		require.Equal(s.t, s.mp.LayerBytes(i), st.Size())
	}
}

func (s *saved) open() []io.ReaderAt {
	s.t.Helper()
	layers, err := OpenLayers(s.mp, s.layers)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = layers.Close() })
	return layers.Readers()
}

func (s *saved) apply(v *vmm) Stats {
	s.t.Helper()
	stats, err := Apply(context.Background(), v.m, s.mp, s.open())
	require.NoError(s.t, err)
	return stats
}

// leftovers lists what lies in a folder.
func leftovers(t testing.TB, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}
