package image

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// smallKernel is an ELF header with one segment: the least that a loader takes.
func smallKernel(t *testing.T, change func(h *elf.Header64)) []byte {
	t.Helper()
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: 0x1000000,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	if change != nil {
		change(&h)
	}
	var buf bytes.Buffer
	require.NoError(t, binary.Write(&buf, binary.LittleEndian, h))
	require.NoError(t, binary.Write(&buf, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 120, Filesz: 100_000, Memsz: 100_000}))
	for i := range 100_000 {
		buf.WriteByte(byte(i * i >> 7))
	}
	return buf.Bytes()
}

// bzImage is one around a payload, with one setup sector after the boot sector.
func bzImage(t *testing.T, payload []byte, change func(h []byte)) string {
	t.Helper()
	const before = 64 // of the kernel's own unpacking code
	head := make([]byte, 1024+before)
	head[setupSectors] = 1
	copy(head[setupMagic:], "HdrS")
	binary.LittleEndian.PutUint16(head[setupVersion:], 0x020f)
	binary.LittleEndian.PutUint32(head[payloadOffset:], before)
	binary.LittleEndian.PutUint32(head[payloadLength:], uint32(len(payload)))
	if change != nil {
		change(head)
	}
	path := filepath.Join(t.TempDir(), "vmlinuz")
	require.NoError(t, os.WriteFile(path, bytes.Join([][]byte{head, payload, []byte("signature")}, nil), 0o600))
	return path
}

// sized is a payload as the kernel's build makes it: packed, then the size unpacked.
func sized(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(size))
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	_, err := z.Write(data)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return buf.Bytes()
}

// packers are those of the kernel's build; where the host has the program that it calls, that is
// taken, with the build's own options.
func packers(t *testing.T) map[string]func(data []byte) []byte {
	t.Helper()
	by := func(program string, args ...string) func([]byte) []byte {
		return func(data []byte) []byte {
			if _, err := exec.LookPath(program); err != nil {
				t.Skip("needs " + program)
			}
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Stdin = bytes.NewReader(data)
			out, err := cmd.Output()
			require.NoError(t, err)
			return sized(out, len(data))
		}
	}
	return map[string]func([]byte) []byte{
		"gzip": func(data []byte) []byte { return gzipped(t, data) },
		"xz":   by("xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "--stdout"),
		"zstd": by("zstd", "-22", "--ultra", "--stdout"),
		"zstd by klauspost": func(data []byte) []byte {
			z, err := zstd.NewWriter(nil)
			require.NoError(t, err)
			return sized(z.EncodeAll(data, nil), len(data))
		},
		"lz4": by("lz4", "-l", "-9", "-", "-"),
		"lz4 by pierrec": func(data []byte) []byte {
			var buf bytes.Buffer
			z := lz4.NewWriter(&buf)
			require.NoError(t, z.Apply(lz4.LegacyOption(true)))
			_, err := z.Write(data)
			require.NoError(t, err)
			require.NoError(t, z.Close())
			return sized(buf.Bytes(), len(data))
		},
	}
}

func TestELFOfEveryPacking(t *testing.T) {
	t.Parallel()
	kernel := smallKernel(t, nil)
	for name := range packers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dst := filepath.Join(t.TempDir(), "vmlinux")
			require.NoError(t, ELF(bzImage(t, packers(t)[name](kernel), nil), dst))
			got, err := os.ReadFile(dst)
			require.NoError(t, err)
			require.True(t, bytes.Equal(kernel, got))
			st, err := os.Stat(dst)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o400), st.Mode())
		})
	}
}

// TestELFRefuses: whatever is wrong with it, nothing appears at dst or beside it.
func TestELFRefuses(t *testing.T) {
	t.Parallel()
	kernel := smallKernel(t, nil)
	good := gzipped(t, kernel)
	lz := packers(t)["lz4 by pierrec"](kernel)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0x10
	for _, c := range []struct{ name, path, why string }{
		{"nothing", bzImage(t, nil, nil), "cut off"},
		{"text", bzImage(t, good, func(h []byte) { copy(h[setupMagic:], "text") }), "no bzImage"},
		{"old", bzImage(t, good, func(h []byte) { binary.LittleEndian.PutUint16(h[setupVersion:], 0x0207) }), "boot protocol is 2.7"},
		{"length", bzImage(t, good, func(h []byte) { binary.LittleEndian.PutUint32(h[payloadLength:], 1<<31) }), "cut off"},
		{"offset", bzImage(t, good, func(h []byte) { binary.LittleEndian.PutUint32(h[payloadOffset:], 0xffffffff) }), "cut off"},
		{"packing", bzImage(t, sized([]byte("BZh9xxxx"), 100), nil), "does not know"},
		{"damage", bzImage(t, flipped, nil), "gzip"},
		{"lz4 damage", bzImage(t, sized(lz[:len(lz)/2], len(kernel)), nil), "lz4"},
		{"longer than said", bzImage(t, sized(lz[:len(lz)-4], len(kernel)-1), nil), "said to be"},
		{"shorter than said", bzImage(t, sized(lz[:len(lz)-4], len(kernel)+1), nil), "said to be"},
		{"huge", bzImage(t, sized(lz[:len(lz)-4], maxKernelELF+1), nil), "bytes unpacked"},
		{"no ELF", bzImage(t, gzipped(t, bytes.Repeat([]byte("x"), 4096)), nil), "no ELF file"},
		{"arm", bzImage(t, gzipped(t, smallKernel(t, func(h *elf.Header64) { h.Machine = uint16(elf.EM_AARCH64) })), nil), "no x86-64 kernel"},
		{"module", bzImage(t, gzipped(t, smallKernel(t, func(h *elf.Header64) { h.Type = uint16(elf.ET_REL) })), nil), "no x86-64 kernel"},
		{"no entry", bzImage(t, gzipped(t, smallKernel(t, func(h *elf.Header64) { h.Entry = 0 })), nil), "no x86-64 kernel"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			err := ELF(c.path, filepath.Join(dir, "vmlinux"))
			require.True(t, fault.Is(err, fault.Invalid), err)
			require.ErrorContains(t, err, c.why)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
	err := ELF(filepath.Join(t.TempDir(), "none"), filepath.Join(t.TempDir(), "vmlinux"))
	require.True(t, fault.Is(err, fault.NotFound), err)
}

// TestELFOfDebiansKernel: the real thing, when a build test has fetched one.
func TestELFOfDebiansKernel(t *testing.T) {
	t.Parallel()
	found, err := filepath.Glob("../../../.cache/*/kernel/boot/vmlinuz-*")
	require.NoError(t, err)
	if len(found) == 0 {
		t.Skip("needs an unpacked kernel in .cache: the VM tests make one")
	}
	dst := filepath.Join(t.TempDir(), "vmlinux")
	require.NoError(t, ELF(found[0], dst))
	f, err := os.Open(dst)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Contains(t, string(data), "Linux version "+filepath.Base(found[0])[len("vmlinuz-"):])
}
