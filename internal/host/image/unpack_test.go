package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// packed is a stream of entries, each with its content.
type packed struct {
	tar.Header
	content string
}

func pack(t *testing.T, entries ...packed) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := e.Header
		h.Format, h.Size = tar.FormatPAX, max(int64(len(e.content)), h.Size)
		require.NoError(t, w.WriteHeader(&h), h.Name)
		_, err := io.WriteString(w, e.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

func dir(name string) packed {
	return packed{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func file(name, content string) packed {
	return packed{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content}
}

func symlink(name, target string) packed {
	return packed{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hard(name, target string) packed {
	return packed{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func with(e packed, records ...string) packed {
	e.PAXRecords = map[string]string{}
	for i := 0; i < len(records); i += 2 {
		e.PAXRecords[records[i]] = records[i+1]
	}
	return e
}

// unpackInto unpacks a stream beside a directory that nothing may touch.
func unpackInto(t *testing.T, stream io.Reader, r FromTreeRequest) (root string, err error) {
	t.Helper()
	base := t.TempDir()
	root = filepath.Join(base, "work", "root")
	victim := filepath.Join(base, "victim")
	require.NoError(t, errors.Join(os.MkdirAll(root, 0o700), os.Mkdir(victim, 0o700), os.WriteFile(victim+"/file", []byte("untouched"), 0o600)))
	before := listed(t, base, root)
	u, err := newUnpacker(t.Context(), root, r)
	require.NoError(t, err)
	err = u.run(stream)
	require.NoError(t, u.close())
	require.Equal(t, before, listed(t, base, root), "something outside was changed")
	return root, err
}

// listed is everything below a directory but what is in skip.
func listed(t *testing.T, base, skip string) []string {
	t.Helper()
	var all []string
	require.NoError(t, filepath.WalkDir(base, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == skip {
			return skipped(err)
		}
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		all = append(all, strings.Join([]string{path, strconv.FormatUint(uint64(st.Mode), 8), strconv.FormatInt(st.Size, 10), strconv.FormatUint(st.Nlink, 10)}, " "))
		return nil
	}))
	return all
}

func skipped(err error) error {
	if err == nil {
		return fs.SkipDir
	}
	return err
}

func TestHostileStreams(t *testing.T) {
	t.Parallel()
	needTools(t)
	root := dir("./")
	long := strings.Repeat("x", 256)
	for name, c := range map[string]struct {
		entries []packed
		say     string
		kind    fault.Kind
	}{
		"dot-dot":               {[]packed{file("../victim/file", "x")}, "plain path", fault.Invalid},
		"dot-dot inside":        {[]packed{dir("a/"), file("a/../../victim/new", "x")}, "plain path", fault.Invalid},
		"absolute":              {[]packed{file("/etc/passwd", "x")}, "plain path", fault.Invalid},
		"dot":                   {[]packed{file("./a", "x")}, "plain path", fault.Invalid},
		"empty part":            {[]packed{dir("a/"), file("a//b", "x")}, "plain path", fault.Invalid},
		"no name":               {[]packed{dir("/")}, "plain path", fault.Invalid},
		"root as a file":        {[]packed{file(".", "x")}, "plain path", fault.Invalid},
		"long name":             {[]packed{file(long, "x")}, "too long", fault.Invalid},
		"long path":             {[]packed{file(strings.Repeat("d/", 2000)+"f", "x")}, "longer than", fault.FailedPrecondition},
		"no directory":          {[]packed{file("a/b", "x")}, "none of the directories", fault.Invalid},
		"file as directory":     {[]packed{file("a", "x"), file("a/b", "x")}, "none of the directories", fault.Invalid},
		"through a link":        {[]packed{symlink("out", "../../victim"), file("out/file", "x")}, "none of the directories", fault.Invalid},
		"through a link inside": {[]packed{dir("a/"), symlink("l", "a"), file("l/b", "x")}, "none of the directories", fault.Invalid},
		"through an absolute":   {[]packed{symlink("out", "/"), dir("out/new/")}, "none of the directories", fault.Invalid},
		"through /proc":         {[]packed{symlink("out", "/proc/self/root"), file("out/x", "x")}, "none of the directories", fault.Invalid},
		"over a link":           {[]packed{symlink("out", "../../victim/file"), file("out", "x")}, "twice", fault.Invalid},
		"directory over a link": {[]packed{symlink("out", "../../victim"), dir("out/")}, "twice", fault.Invalid},
		"file twice":            {[]packed{file("a", "x"), file("a", "y")}, "twice", fault.Invalid},
		"directory twice":       {[]packed{dir("a/"), dir("a/")}, "twice", fault.Invalid},
		"link twice":            {[]packed{file("a", "x"), file("b", "x"), hard("b", "a")}, "twice", fault.Invalid},
		"symlink twice":         {[]packed{file("a", "x"), symlink("a", "b")}, "twice", fault.Invalid},
		"fifo twice":            {[]packed{file("a", "x"), {Header: tar.Header{Typeflag: tar.TypeFifo, Name: "a"}}}, "twice", fault.Invalid},
		"hard link out":         {[]packed{hard("a", "../../victim/file")}, "plain path", fault.Invalid},
		"hard link absolute":    {[]packed{hard("a", "/etc/passwd")}, "plain path", fault.Invalid},
		"hard link by a link":   {[]packed{symlink("out", "../../victim"), hard("a", "out/file")}, "none of the directories", fault.Invalid},
		"hard link to nothing":  {[]packed{hard("a", "b")}, "no file before it", fault.Invalid},
		"hard link to itself":   {[]packed{hard("a", "a")}, "no file before it", fault.Invalid},
		"hard link to a folder": {[]packed{dir("d/"), hard("a", "d")}, "no file before it", fault.Invalid},
		"hard link to the root": {[]packed{hard("a", ".")}, "plain path", fault.Invalid},
		"symlink to nowhere":    {[]packed{symlink("a", strings.Repeat("x", 5000))}, "nowhere", fault.Invalid},
		"device":                {[]packed{{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "a", Devmajor: 1 << 20}}}, "device", fault.Invalid},
		"kind":                  {[]packed{{Header: tar.Header{Typeflag: 'V', Name: "a"}}}, "kind", fault.Invalid},
		"owner":                 {[]packed{{Header: tar.Header{Typeflag: tar.TypeReg, Name: "a", Uid: 1 << 33}}}, "owner", fault.Invalid},
		"trusted attribute":     {[]packed{with(file("a", "x"), xattrRecord+"trusted.overlay.opaque", "y")}, "attribute", fault.Invalid},
		"access list":           {[]packed{with(file("a", "x"), xattrRecord+"system.posix_acl_access", "y")}, "attribute", fault.Invalid},
		"capability":            {[]packed{with(file("a", "x"), xattrRecord+"security.capability", "nonsense")}, "security.capability", fault.Invalid},
		"large attribute":       {[]packed{with(file("a", "x"), xattrRecord+"user.a", strings.Repeat("v", 4000))}, "do not fit", fault.FailedPrecondition},
		"size":                  {[]packed{with(file("a", ""), sparseSize, "-1")}, "size", fault.Invalid},
		"no size":               {[]packed{with(file("a", ""), sparseSize, "many")}, "size", fault.Invalid},
		"endless hole":          {[]packed{with(file("a", ""), sparseSize, "9223372036854775807")}, "holes included", fault.FailedPrecondition},
		"map overlaps":          {[]packed{with(file("a", "xxxx"), sparseSize, "100", sparseMap, "0,2,1,2")}, "map", fault.Invalid},
		"map leaves the file":   {[]packed{with(file("a", "xx"), sparseSize, "100", sparseMap, "99,2")}, "map", fault.Invalid},
		"map overflows":         {[]packed{with(file("a", "xx"), sparseSize, "100", sparseMap, "9223372036854775807,2")}, "map", fault.Invalid},
		"map below":             {[]packed{with(file("a", "xx"), sparseSize, "100", sparseMap, "-1,2")}, "map", fault.Invalid},
		"map of less":           {[]packed{with(file("a", "xxx"), sparseSize, "100", sparseMap, "0,2")}, "map", fault.Invalid},
		"map is cut":            {[]packed{with(file("a", "xx"), sparseSize, "100", sparseMap, "0")}, "map", fault.Invalid},
		"map of words":          {[]packed{with(file("a", "xx"), sparseSize, "100", sparseMap, "a,b")}, "map", fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := unpackInto(t, bytes.NewReader(pack(t, append([]packed{root}, c.entries...)...)), FromTreeRequest{})
			require.ErrorContains(t, err, c.say)
			require.Equal(t, c.kind, fault.KindOf(err), "%v", err)
		})
	}
}

// TestForeignSparse: package tar would make zeros of a hole without an end.
func TestForeignSparse(t *testing.T) {
	t.Parallel()
	needTools(t)
	stream := pack(t, dir("./"), with(file("a", ""), "XXX.sparse.size", "9223372036854775807", "XXX.sparse.map", "", "XXX.sparse.numblocks", "0"))
	stream = bytes.ReplaceAll(stream, []byte("XXX.sparse"), []byte("GNU.sparse"))
	_, err := unpackInto(t, bytes.NewReader(stream), FromTreeRequest{})
	require.Equal(t, fault.Invalid, fault.KindOf(err), "%v", err)
}

func TestBounds(t *testing.T) {
	t.Parallel()
	needTools(t)
	stream := pack(t, dir("./"), file("a", strings.Repeat("x", 10_000)), file("b", strings.Repeat("y", 10_000)))
	_, err := unpackInto(t, bytes.NewReader(stream), FromTreeRequest{MaxBytes: 20_000, MaxEntries: 3})
	require.NoError(t, err)
	_, err = unpackInto(t, bytes.NewReader(stream), FromTreeRequest{MaxBytes: 19_999})
	require.Equal(t, fault.ResourceExhausted, fault.KindOf(err), "%v", err)
	_, err = unpackInto(t, bytes.NewReader(stream), FromTreeRequest{MaxEntries: 2})
	require.Equal(t, fault.ResourceExhausted, fault.KindOf(err), "%v", err)
	zeros := pack(t, dir("./"), file("a", string(make([]byte, 1<<20))))
	_, err = unpackInto(t, bytes.NewReader(zeros), FromTreeRequest{MaxBytes: 1})
	require.NoError(t, err, "zeros take nothing")
	var many []packed
	for i := range 5 {
		many = append(many, with(file(strconv.Itoa(i), ""), sparseSize, strconv.Itoa(maxHoles/4)))
	}
	_, err = unpackInto(t, bytes.NewReader(pack(t, many...)), FromTreeRequest{})
	require.ErrorContains(t, err, "holes included", "all together")
}

// TestCutStreams: wherever a stream is cut, between two files too, it does not pass for whole.
func TestCutStreams(t *testing.T) {
	t.Parallel()
	needTools(t)
	stream := pack(t, dir("./"), file("a", strings.Repeat("x", 700)), file("zeros", string(make([]byte, 2048))), dir("d/"))
	for at := 0; at < len(stream)-512; at += 256 {
		for _, r := range []io.Reader{bytes.NewReader(stream[:at]), iotest.DataErrReader(bytes.NewReader(stream[:at])), iotest.HalfReader(bytes.NewReader(stream[:at]))} {
			_, err := unpackInto(t, r, FromTreeRequest{})
			require.Equal(t, fault.Unavailable, fault.KindOf(err), "at %d: %v", at, err)
		}
	}
	for _, r := range []io.Reader{bytes.NewReader(stream), iotest.DataErrReader(bytes.NewReader(stream)), iotest.OneByteReader(bytes.NewReader(stream))} {
		_, err := unpackInto(t, r, FromTreeRequest{})
		require.NoError(t, err)
	}
	said := fault.New(fault.Unavailable, "export", "files", "the guest is gone")
	_, err := unpackInto(t, io.MultiReader(bytes.NewReader(stream), iotest.ErrReader(said)), FromTreeRequest{})
	require.ErrorIs(t, err, said, "the tar has ended, its sender says that it is not whole")
	_, err = unpackInto(t, io.MultiReader(bytes.NewReader(stream), strings.NewReader("more")), FromTreeRequest{})
	require.Equal(t, fault.Invalid, fault.KindOf(err), "%v", err)
	_, err = unpackInto(t, strings.NewReader(strings.Repeat("no tar at all ", 100)), FromTreeRequest{})
	require.Equal(t, fault.Invalid, fault.KindOf(err), "%v", err)
}

func TestUnpackedIsWhatWasPacked(t *testing.T) {
	t.Parallel()
	needTools(t)
	at := time.Unix(1_700_000_001, 5)
	everything := packed{tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o6751, Uid: 1000, Gid: 70000, ModTime: at}, "content"}
	everything = with(everything, xattrRecord+"user.a%3Db%25", "\x00v", xattrRecord+"user.empty", "")
	folder := dir("d/")
	folder.Mode, folder.ModTime, folder.Uid = 0o1770, at, 7
	link := symlink("d/l", "/etc/passwd")
	link.ModTime, link.Uid = at, 8
	old := file("old", "")
	old.ModTime = time.Unix(-5, 0)
	root, err := unpackInto(t, bytes.NewReader(pack(t, dir("./"), folder, everything, hard("d/h", "d/f"), link, hard("d/l2", "d/l"), old,
		packed{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "d/dev", Mode: 0o640, Devmajor: 8, Devminor: 300, Gid: 6, ModTime: at}},
		with(file("holes", "beginend"), sparseSize, "1048576", sparseMap, "0,5,1048573,3"))), FromTreeRequest{})
	require.NoError(t, err)
	stat := func(name string) (st unix.Stat_t) {
		require.NoError(t, unix.Lstat(filepath.Join(root, name), &st), name)
		return st
	}
	f := stat("d/f")
	require.Equal(t, []uint32{0o106751, 1000, 70000}, []uint32{f.Mode, f.Uid, f.Gid})
	require.Equal(t, at.UnixNano(), f.Mtim.Nano())
	require.Equal(t, f.Ino, stat("d/h").Ino)
	value := make([]byte, 10)
	n, err := unix.Getxattr(filepath.Join(root, "d/f"), "user.a=b%", value)
	require.NoError(t, err)
	require.Equal(t, "\x00v", string(value[:n]))
	n, err = unix.Getxattr(filepath.Join(root, "d/f"), "user.empty", value)
	require.NoError(t, err)
	require.Zero(t, n)
	d := stat("d")
	require.Equal(t, []uint32{0o41770, 7}, []uint32{d.Mode, d.Uid})
	require.Equal(t, at.UnixNano(), d.Mtim.Nano(), "though files were made in it")
	l := stat("d/l")
	require.Equal(t, []any{uint32(8), at.UnixNano(), uint64(2)}, []any{l.Uid, l.Mtim.Nano(), l.Nlink})
	dev := stat("d/dev")
	require.Equal(t, []any{uint32(unix.S_IFBLK | 0o640), unix.Mkdev(8, 300), uint32(6)}, []any{dev.Mode, dev.Rdev, dev.Gid})
	require.Zero(t, stat("old").Mtim.Sec, "a disk knows no time before 1970")
	content, err := os.ReadFile(filepath.Join(root, "holes"))
	require.NoError(t, err)
	require.Equal(t, "begin"+string(make([]byte, 1<<20-8))+"end", string(content))
	require.LessOrEqual(t, stat("holes").Blocks*512, int64(3*blockBytes))
}

// TestZerosBecomeHoles, wherever they begin.
func TestZerosBecomeHoles(t *testing.T) {
	t.Parallel()
	needTools(t)
	content := make([]byte, 3<<20+100)
	for _, at := range []int{0, 5000, 1 << 20, 1<<20 + 4095, len(content) - 1} {
		content[at] = 'x'
	}
	root, err := unpackInto(t, bytes.NewReader(pack(t, file("f", string(content)))), FromTreeRequest{MaxBytes: 5 * blockBytes})
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(root, "f"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))
}

func TestUnpackCancelled(t *testing.T) {
	t.Parallel()
	needTools(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	u, err := newUnpacker(ctx, t.TempDir(), FromTreeRequest{})
	require.NoError(t, err)
	require.ErrorIs(t, u.run(bytes.NewReader(pack(t, dir("./")))), context.Canceled)
	require.NoError(t, u.close())
}
