package export

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/guesttest"
)

// item is an entry of the stream with its content.
type item struct {
	*tar.Header
	content string
}

// read unpacks a stream in memory and says which names came when.
func read(t *testing.T, stream []byte) (map[string]item, []string) {
	t.Helper()
	found, order := map[string]item{}, []string{}
	for r := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found, order
		}
		require.NoError(t, err)
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NotContains(t, found, h.Name, "twice")
		found[h.Name] = item{h, string(content)}
		order = append(order, h.Name)
	}
}

func export(t *testing.T, root string) (map[string]item, []string) {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, Write(t.Context(), &out, root))
	return read(t, out.Bytes())
}

func put(t *testing.T, root, name, content string) string {
	t.Helper()
	path := filepath.Join(root, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

var then = time.Unix(1_500_000_000, 123_456_789)

func TestEverythingIsKept(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, os.Chmod(root, 0o755))
	path := put(t, root, "dir/file", "content")
	require.NoError(t, unix.Chown(path, 1000, 70000))
	require.NoError(t, unix.Chmod(path, 0o6751))
	require.NoError(t, os.Link(path, filepath.Join(root, "dir/hard")))
	require.NoError(t, os.Chtimes(path, then, then))
	require.NoError(t, os.Symlink("../to \xff nowhere", filepath.Join(root, "dir/soft")))
	require.NoError(t, os.Mkdir(filepath.Join(root, "sticky"), 0o700))
	require.NoError(t, unix.Chmod(filepath.Join(root, "sticky"), 0o1777))
	require.NoError(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	require.NoError(t, unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	socket, err := net.Listen("unix", filepath.Join(root, "socket"))
	require.NoError(t, err)
	defer socket.Close()
	odd := "odd \n\t\xc3\x28\\ name" + strings.Repeat("n", 200)
	put(t, root, odd+"/"+odd, "odd")
	require.NoError(t, os.Chtimes(filepath.Join(root, "dir"), then, then))

	got, order := export(t, root)
	require.Equal(t, "./", order[0])
	require.IsIncreasing(t, order[1:])
	file := got["dir/file"]
	require.Equal(t, "content", file.content)
	require.Equal(t, []int{1000, 70000}, []int{file.Uid, file.Gid})
	require.EqualValues(t, 0o6751, file.Mode)
	require.True(t, file.ModTime.Equal(then), file.ModTime)
	require.True(t, got["dir/"].ModTime.Equal(then), "of a directory")
	require.Empty(t, file.Uname)
	require.Equal(t, []any{byte(tar.TypeLink), "dir/file"}, []any{got["dir/hard"].Typeflag, got["dir/hard"].Linkname})
	require.Equal(t, "../to \xff nowhere", got["dir/soft"].Linkname)
	require.EqualValues(t, 0o1777, got["sticky/"].Mode)
	require.Equal(t, []any{byte(tar.TypeFifo), int64(0o600)}, []any{got["fifo"].Typeflag, got["fifo"].Mode})
	require.Equal(t, []any{byte(tar.TypeChar), int64(1), int64(3)}, []any{got["null"].Typeflag, got["null"].Devmajor, got["null"].Devminor})
	require.Equal(t, "odd", got[odd+"/"+odd].content)
	require.NotContains(t, got, "socket")
	require.Len(t, got, 10)
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	path := put(t, root, "ping", "#!")
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep
	values := map[string]string{
		"security.capability": capability, "user.a": "a\x00b=c\n", "user.50%=x": "odd", "user.empty": "", "trusted.t": "not kept",
		"user.long": strings.Repeat("v", 1000),
	}
	for name, value := range values {
		require.NoError(t, unix.Setxattr(path, name, []byte(value), 0), name)
	}
	require.NoError(t, unix.Setxattr(root, "user.dir", []byte("d"), 0))
	got, _ := export(t, root)
	delete(values, "trusted.t")
	found := map[string]string{}
	for key, value := range got["ping"].PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			found[strings.NewReplacer("%3D", "=", "%25", "%").Replace(name)] = value
		}
	}
	require.Equal(t, values, found)
	require.Equal(t, "d", got["./"].PAXRecords["SCHILY.xattr.user.dir"])
}

// TestHoles: neither time nor bytes are spent on them, at any size where the kernel tells.
func TestHoles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	size, last := int64(1)<<40, int64(1)<<39
	if guesttest.InGVisor(t) {
		size, last = 1<<30, 1<<29 // it is read whole
	}
	f, err := os.Create(filepath.Join(root, "sparse"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("middle"), last+5)
	require.NoError(t, errors.Join(err, f.Truncate(size), f.Close()))
	require.NoError(t, os.Truncate(put(t, root, "hole", ""), 1<<30))
	put(t, root, "plain", strings.Repeat("x", 3<<20))
	put(t, root, "zeros", string(make([]byte, 10)))
	began := time.Now()
	var out bytes.Buffer
	require.NoError(t, Write(t.Context(), &out, root))
	t.Logf("%d bytes in %v", out.Len(), time.Since(began))
	require.Less(t, out.Len(), 4<<20)
	got, _ := read(t, out.Bytes())
	sparse := got["sparse"]
	require.Equal(t, strconv.FormatInt(size, 10), sparse.PAXRecords[sparseSize])
	require.Equal(t, strconv.FormatInt(last, 10)+","+strconv.Itoa(len(sparse.content)), sparse.PAXRecords[sparseMap])
	require.Equal(t, "middle", strings.Trim(sparse.content, "\x00"))
	require.Equal(t, "1073741824", got["hole"].PAXRecords[sparseSize])
	require.Empty(t, got["hole"].content)
	require.Len(t, got["plain"].content, 3<<20)
	require.Empty(t, got["plain"].PAXRecords[sparseSize])
	require.Len(t, got["zeros"].content, 10)
}

// TestScan finds what the file system tells, where it does not.
func TestScan(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer f.Close()
	size := int64(5<<20 + 77)
	require.NoError(t, f.Truncate(size))
	for _, at := range []int64{0, 2<<20 - 1, 3 << 20, size - 1} {
		_, err := f.WriteAt([]byte("x"), at)
		require.NoError(t, err)
	}
	e := exporter{ctx: t.Context(), buf: make([]byte, 1<<20)}
	parts, err := e.scanExtents(f, size)
	require.NoError(t, err)
	parts = join(parts, size)
	require.Equal(t, []extent{
		{0, leastHole}, {2<<20 - leastHole, leastHole}, {3 << 20, leastHole}, {5 << 20, 77},
	}, parts)
	require.Equal(t, "0,65536,2031616,65536,3145728,65536,5242880,77", mapText(parts))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	e.ctx = cancelled
	_, err = e.scanExtents(f, size)
	require.ErrorIs(t, err, context.Canceled)
}

func TestJoin(t *testing.T) {
	t.Parallel()
	const hole = leastHole
	require.Equal(t, []extent{{0, 3 * hole}}, join([]extent{{hole - 1, hole}, {3*hole - 2, 2}}, 3*hole), "gaps that are not worth it")
	require.Equal(t, []extent{{hole, 1}, {2*hole + 1, 1}}, join([]extent{{hole, 1}, {2*hole + 1, 1}}, 4*hole))
	require.Empty(t, join(nil, 1<<40))
	require.Equal(t, []extent{{0, 5}}, join(nil, 5))
	var many []extent
	for i := range int64(10 * mostExtents) {
		many = append(many, extent{i * 2 * hole, 1})
	}
	size := int64(20 * mostExtents * hole)
	joined := join(many, size)
	require.LessOrEqual(t, len(joined), mostExtents)
	require.NotEmpty(t, joined)
	require.Less(t, len(mapText(joined)), 1<<20)
}

func TestIdentityIsNotExported(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for name, content := range map[string]string{
		"etc/machine-id": "0123\n", "etc/hostname": "mine\n", "etc/resolv.conf": "nameserver 192.0.2.1\n",
		"etc/hosts":                "127.0.0.1 localhost\n192.0.2.7 db\n127.0.1.1 mine # roost\n",
		"etc/machine-id.roost":     "being written",
		"etc/ssh/ssh_host_rsa_key": "secret", "etc/ssh/ssh_host_rsa_key.pub": "public", "etc/ssh/ssh_host_rsa_key.roost": "secret",
		"etc/ssh/sshd_config": "kept", "etc/mine.roost": "kept", "root/.bash_history": "kept",
		"var/lib/systemd/random-seed": "seed", "var/lib/dbus/machine-id": "0123\n",
		"run/roost/generation": "7\n", "run/roost/boot-marker": "x\n", "run/other": "kept",
		"home/user/.roost-upload-123": "half",
	} {
		put(t, root, name, content)
	}
	require.NoError(t, os.Mkdir(filepath.Join(root, "lost+found"), 0o700))
	got, order := export(t, root)
	for _, name := range []string{"etc/machine-id", "etc/resolv.conf", "etc/ssh/ssh_host_rsa_key"} {
		require.Contains(t, got, name)
		require.Empty(t, got[name].content, name)
	}
	require.EqualValues(t, 0o600, got["etc/ssh/ssh_host_rsa_key"].Mode)
	require.EqualValues(t, 0o644, got["etc/machine-id"].Mode)
	require.Equal(t, "roost\n", got["etc/hostname"].content)
	require.Equal(t, "127.0.0.1 localhost\n192.0.2.7 db\n", got["etc/hosts"].content)
	for _, name := range []string{"etc/ssh/sshd_config", "etc/mine.roost", "root/.bash_history", "run/other"} {
		require.Equal(t, "kept", got[name].content)
	}
	require.Equal(t, []string{
		"./", "etc/", "etc/hostname", "etc/hosts", "etc/machine-id", "etc/mine.roost", "etc/resolv.conf", "etc/ssh/", "etc/ssh/ssh_host_rsa_key",
		"etc/ssh/sshd_config", "home/", "home/user/", "root/", "root/.bash_history", "run/", "run/other", "var/", "var/lib/",
		"var/lib/dbus/", "var/lib/systemd/",
	}, order)
	before, err := os.ReadFile(filepath.Join(root, "etc/machine-id"))
	require.NoError(t, err)
	require.Equal(t, "0123\n", string(before), "nothing is changed")
}

// A link in the place of such a file is replaced, and one to the machine's id is none of its own.
func TestIdentityByLinks(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "var/lib/dbus"), 0o755))
	require.NoError(t, os.Symlink("/run/nowhere", filepath.Join(root, "etc/resolv.conf")))
	require.NoError(t, os.Symlink("/etc/machine-id", filepath.Join(root, "var/lib/dbus/machine-id")))
	got, _ := export(t, root)
	require.Equal(t, byte(tar.TypeReg), got["etc/resolv.conf"].Typeflag)
	require.Equal(t, "/etc/machine-id", got["var/lib/dbus/machine-id"].Linkname)
}

func TestOtherFileSystemsAreLeftOut(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	odd := filepath.Join(root, "mnt/a b\\c\td")
	require.NoError(t, os.MkdirAll(odd, 0o755))
	require.NoError(t, unix.Mount("tmpfs", odd, "tmpfs", 0, "mode=0711"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(odd, unix.MNT_DETACH)) })
	put(t, odd, "inside", "x")
	put(t, root, "mnt/beside", "y")
	got, order := export(t, root)
	require.Equal(t, []string{"./", "mnt/", "mnt/a b\\c\td/", "mnt/beside"}, order)
	require.EqualValues(t, 0o711, got["mnt/a b\\c\td/"].Mode)
}

func TestParseMounts(t *testing.T) {
	t.Parallel()
	const info = `22 1 8:1 / / rw,noatime - ext4 /dev/vda rw
23 22 0:5 / /dev rw - devtmpfs devtmpfs rw
24 23 0:20 / /dev/shm rw shared:1 - tmpfs tmpfs rw
25 22 0:21 / /mnt/with\040space rw - tmpfs tmpfs rw
short line
`
	got, err := parseMounts(strings.NewReader(info), "/")
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"dev": true, "dev/shm": true, "mnt/with space": true}, got)
	got, err = parseMounts(strings.NewReader(info), "/dev")
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"shm": true}, got)
	require.Equal(t, `a\b\9`, unescape(`a\134b\9`))
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	put(t, root, "file", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Write(ctx, io.Discard, root)
	require.Equal(t, fault.Canceled, fault.KindOf(err))
	require.Error(t, Write(t.Context(), io.Discard, filepath.Join(root, "nowhere")))
}
