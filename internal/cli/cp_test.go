package cli_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tree lists a folder: name, mode and content (or link target) of everything in it.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	require.NoError(t, filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		name, _ := filepath.Rel(dir, at)
		line := name + " " + info.Mode().String()
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(at)
			line = name + " -> " + to
		case d.Type().IsRegular():
			text, err := os.ReadFile(at)
			require.NoError(t, err)
			line += " " + string(text)
		}
		out = append(out, line)
		return nil
	}))
	sort.Strings(out)
	return out
}

// project makes a folder with what is hard to copy: modes, links (dangling and absolute), a
// folder that is not writable, an empty one, odd and long names.
func project(t *testing.T, dir string) string {
	t.Helper()
	sub := filepath.Join(dir, "sub")
	require.NoError(t, os.MkdirAll(sub, 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	long := strings.Repeat("n", 200)
	for name, mode := range map[string]fs.FileMode{"run.sh": 0o755, "secret": 0o600, "sub/readonly": 0o444, "ü ñ\tname": 0o644, long: 0o640} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("text of "+name), 0o600))
		require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	require.NoError(t, os.Symlink("../run.sh", filepath.Join(sub, "up")))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "absolute")))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	require.NoError(t, os.Chmod(sub, 0o555))
	require.NoError(t, os.Chmod(dir, 0o750))
	t.Cleanup(func() { _ = os.Chmod(sub, 0o755) })
	return dir
}

func TestCpFilesBothWays(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	here := t.TempDir()
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	file := filepath.Join(here, "big.bin")
	require.NoError(t, os.WriteFile(file, big, 0o750))

	s.ok(t, "cp", file, running+":/tmp/new/copy.bin")
	got, err := os.ReadFile(s.at("/tmp/new/copy.bin"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, got))
	info, err := os.Stat(s.at("/tmp/new/copy.bin"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o750), info.Mode())

	s.ok(t, "cp", file, running+":/tmp/new") // A folder there: into it.
	require.FileExists(t, s.at("/tmp/new/big.bin"))
	s.ok(t, "cp", file, running+":made/") // A slash: into a folder of the user's home.
	require.FileExists(t, s.at("/home/user/made/big.bin"))
	s.ok(t, "cp", file, running+":")
	require.FileExists(t, s.at("/home/user/big.bin"))

	back := filepath.Join(here, "back")
	s.ok(t, "cp", running+":/tmp/new/copy.bin", back)
	s.ok(t, "cp", running+":/tmp/new/copy.bin", here)
	s.ok(t, "cp", running+":/tmp/new/copy.bin", filepath.Join(here, "made")+"/")
	for _, at := range []string{"back", "copy.bin", "made/copy.bin"} {
		got, err := os.ReadFile(filepath.Join(here, at))
		require.NoError(t, err)
		require.True(t, bytes.Equal(big, got), at)
	}
	info, err = os.Stat(back)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o750), info.Mode())
}

func TestCpThroughPipes(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, strings.NewReader("piped"), "cp", "-", running+":/tmp/in", "--json")
	require.Equal(t, 0, r.code, r.stderr)
	require.JSONEq(t, `{"source":"-","destination":"`+running+`:/tmp/in","files":1,"bytes":5}`, r.stdout)
	require.Equal(t, "piped", s.ok(t, "cp", running+":/tmp/in", "-"))
	r = s.run(t, nil, "cp", running+":/tmp", "-")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "a folder cannot go to stdout")
	r = s.run(t, strings.NewReader("x"), "cp", "-", running+":/tmp/")
	require.Contains(t, r.stderr, "stdin has no name")
	// What is no regular file is written in place.
	s.ok(t, "cp", running+":/tmp/in", "/dev/null")
	info, err := os.Stat("/dev/null")
	require.NoError(t, err)
	require.Equal(t, fs.ModeCharDevice, info.Mode()&fs.ModeCharDevice)
}

func TestCpFoldersBothWays(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	here := t.TempDir()
	src := project(t, filepath.Join(here, "proj"))
	want := tree(t, src)

	s.ok(t, "cp", src, running+":/srv/app")
	require.Equal(t, want, tree(t, s.at("/srv/app")), "a new folder becomes the copy")
	s.ok(t, "cp", src, running+":/srv")
	require.Equal(t, want, tree(t, s.at("/srv/proj")), "an existing folder takes it in")
	require.NoError(t, os.Mkdir(s.at("/open"), 0o777))
	require.NoError(t, os.Chmod(s.at("/open"), 0o777))
	s.ok(t, "cp", src+"/.", running+":/open")
	require.Equal(t, want[1:], tree(t, s.at("/open"))[1:], "/. copies the contents")
	info, err := os.Stat(s.at("/open"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o777), info.Mode().Perm(), "a folder that was there keeps its mode")

	out := s.ok(t, "cp", running+":/srv/app", filepath.Join(here, "back"), "--json")
	require.Contains(t, out, `"files": 8`)
	require.Equal(t, want, tree(t, filepath.Join(here, "back")))
	dst := t.TempDir()
	s.ok(t, "cp", running+":/srv/app", dst)
	require.Equal(t, want, tree(t, filepath.Join(dst, "app")))
	s.ok(t, "cp", running+":/srv/app/.", filepath.Join(dst, "app"))
	require.Equal(t, want, tree(t, filepath.Join(dst, "app")), "again over what is there, read-only files too")
}

func TestCpFollowsARemoteSymlink(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("/data/real/file", "x", 0o644)
	require.NoError(t, os.Symlink("real", s.at("/data/link")))
	dst := filepath.Join(t.TempDir(), "copy")
	s.ok(t, "cp", running+":/data/link", dst)
	require.FileExists(t, filepath.Join(dst, "file"))
	require.NoError(t, os.Symlink("loop", s.at("/data/loop")))
	require.Contains(t, s.run(t, nil, "cp", running+":/data/loop", dst).stderr, "too many symlinks")
}

func TestCpRefusals(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("/dir/file", "x", 0o644)
	here := t.TempDir()
	local := filepath.Join(here, "local")
	require.NoError(t, os.WriteFile(local, nil, 0o644))
	for want, args := range map[string][]string{
		"there is no " + running + ":/none":        {running + ":/none", here},
		"no such file or directory":                {filepath.Join(here, "none"), running + ":/x"},
		"a folder cannot replace":                  {running + ":/dir", local},
		"which is no folder":                       {here, running + ":/dir/file"},
		":/dir/file/ is no folder":                 {local, running + ":/dir/file/"},
		"it is paused":                             {local, pausedID + ":/x"},
		"find sandbox zzzzzzzzzzzzzzzzzzzz: there": {local, "zzzzzzzzzzzzzzzzzzzz:/x"},
	} {
		r := s.run(t, nil, append([]string{"cp"}, args...)...)
		require.Equal(t, 1, r.code, args)
		require.Contains(t, r.stderr, want)
		require.True(t, strings.HasPrefix(r.stderr, "roost: cp "), r.stderr)
	}
	require.NoDirExists(t, s.at("/x"))
}

func TestCpLeavesOutWhatIsNoFile(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	here := t.TempDir()
	require.NoError(t, syscall.Mkfifo(filepath.Join(here, "pipe"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(here, "file"), nil, 0o644))
	r := s.run(t, nil, "cp", here, running+":/dst")
	require.Equal(t, 0, r.code, r.stderr)
	require.Contains(t, r.stderr, "roost: cp: left out "+here+"/pipe: it is no file, folder or symlink\n")
	require.FileExists(t, s.at("/dst/file"))
	require.NoFileExists(t, s.at("/dst/pipe"))
}

// members makes an archive.
func members(headers ...tar.Header) func() io.Reader {
	return func() io.Reader {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range headers {
			if h.Typeflag == 0 {
				h.Typeflag, h.Size = tar.TypeReg, 4
			}
			if h.Mode == 0 {
				h.Mode = 0o644
			}
			_ = w.WriteHeader(&h)
			_, _ = w.Write([]byte("evil"[:h.Size]))
		}
		_ = w.Close()
		return &buf
	}
}

func TestCpRefusesAHostileArchive(t *testing.T) {
	t.Parallel()
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for name, archive := range map[string][]tar.Header{
		"dots":             {{Name: "../evil"}},
		"dots inside":      {{Name: "a/../../evil"}},
		"absolute":         {{Name: "/evil"}},
		"through a link":   {link("out", ".."), {Name: "out/evil"}},
		"absolute link":    {link("out", "@OUTSIDE@"), {Name: "out/evil"}},
		"link of links":    {link("a", "."), link("b", "a/.."), {Name: "b/evil"}},
		"hard link":        {{Typeflag: tar.TypeLink, Name: "x", Linkname: "../victim"}},
		"hard link by way": {link("out", ".."), {Typeflag: tar.TypeLink, Name: "x", Linkname: "out/victim"}},
		"mode by way":      {link("out", ".."), {Typeflag: tar.TypeDir, Name: "out/victim.d", Mode: 0o777}},
		"no name":          {{Name: "."}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.put("/src/x", "", 0o644)
			outside := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(outside, "victim"), []byte("mine"), 0o600))
			require.NoError(t, os.Mkdir(filepath.Join(outside, "victim.d"), 0o700))
			for i := range archive {
				archive[i].Linkname = strings.ReplaceAll(archive[i].Linkname, "@OUTSIDE@", outside)
			}
			before := tree(t, outside)
			s.archive = members(archive...)
			r := s.run(t, nil, "cp", running+":/src", filepath.Join(outside, "dst"))
			require.Equal(t, 1, r.code, r.stderr)
			require.NotContains(t, r.stderr, "goroutine")
			require.Equal(t, before, tree(t, outside), "nothing outside changed, and nothing is left of dst")
		})
	}
}

func TestCpUnpacksSafely(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("/src/x", "", 0o644)
	outside := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(outside, []byte("mine"), 0o600))
	dst := t.TempDir()
	require.NoError(t, os.Symlink(outside, filepath.Join(dst, "link")))
	require.NoError(t, os.Link(outside, filepath.Join(dst, "hard")))
	s.archive = members(
		tar.Header{Name: "link"}, tar.Header{Name: "hard"}, // Over links that the user has there.
		tar.Header{Name: "suid", Mode: 0o4755},
		tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "twin", Typeflag: tar.TypeLink, Linkname: "suid"}, tar.Header{Name: "twin", Typeflag: tar.TypeLink, Linkname: "suid"},
	)
	r := s.run(t, nil, "cp", running+":/src/.", dst)
	require.Equal(t, 0, r.code, r.stderr)
	require.Contains(t, r.stderr, "left out dev")
	text, err := os.ReadFile(outside)
	require.NoError(t, err)
	require.Equal(t, "mine", string(text), "links are replaced, not written through")
	require.Equal(t, []string{". drwxr-xr-x", "hard -rw-r--r-- evil", "link -rw-r--r-- evil", "suid -rwxr-xr-x evil", "twin -rwxr-xr-x evil"}, tree(t, dst))
}

func TestCpKeepsNoHalfFile(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("/big", strings.Repeat("new", 1<<16), 0o644)
	s.cutRead = true
	here := t.TempDir()
	r := s.run(t, nil, "cp", running+":/big", here+"/fresh")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "the connection broke off")
	require.NoError(t, os.WriteFile(here+"/old", []byte("old"), 0o600))
	require.Equal(t, 1, s.run(t, nil, "cp", running+":/big", here+"/old").code)
	require.Equal(t, []string{". drwxr-xr-x", "old -rw------- old"}, tree(t, here), "the old file stands, nothing else is there")
}

func TestCpFolderCutInTheMiddle(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("/src/x", "", 0o644)
	whole := members(tar.Header{Name: "one"}, tar.Header{Name: "two"})
	s.archive = func() io.Reader { return io.MultiReader(io.LimitReader(whole(), 1000), brokenReader{}) }
	here := t.TempDir()
	require.Equal(t, 1, s.run(t, nil, "cp", running+":/src", here+"/fresh").code)
	require.Equal(t, []string{". drwxr-xr-x"}, tree(t, here))
	require.Equal(t, 1, s.run(t, nil, "cp", running+":/src/.", here).code)
	require.Equal(t, []string{". drwxr-xr-x", "one -rw-r--r-- evil"}, tree(t, here), "whole files stay where the folder was there")
}

func TestCpUploadThatCannotBeRead(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	here := t.TempDir()
	require.NoError(t, os.WriteFile(here+"/file", []byte("x"), 0o644))
	// /proc/self/mem opens but does not read: a local failure in the middle of a request.
	r := s.run(t, nil, "cp", "/proc/self/mem", running+":/dst")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "roost: cp /proc/self/mem "+running+":/dst: read /proc/self/mem: input/output error")
}

func TestInterruptedCpLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("/big", "x", 0o644)
	here := t.TempDir()
	sent := make(chan struct{})
	s.wrap = func(next http.Handler) http.Handler { return slowRead(next, sent) }
	cmd := s.command(t, "cp", running+":/big", here+"/fresh")
	require.NoError(t, cmd.Start())
	<-sent
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 130, exitCode(cmd))
	require.Equal(t, []string{". drwxr-xr-x"}, tree(t, here))
}

// slowRead answers reads of files with a little data and then nothing, until the client goes.
func slowRead(next http.Handler, sent chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/files") {
			next.ServeHTTP(w, r)
			return
		}
		_, _ = w.Write([]byte("some"))
		w.(http.Flusher).Flush()
		close(sent)
		<-r.Context().Done()
	})
}

func TestCpShowsABarOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	reader, writer := io.Pipe()
	s.put("/src/x", "", 0o644)
	s.archive = func() io.Reader { return reader }
	go func() {
		w := tar.NewWriter(writer)
		for range 30 {
			_ = w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 10000})
			_, _ = w.Write(make([]byte, 10000))
			time.Sleep(50 * time.Millisecond)
		}
		_ = w.Close()
		_ = writer.Close()
	}()
	sc := s.onTerminal(t, s.command(t, "cp", running+":/src", t.TempDir()+"/dst"))
	sc.want(" KiB (")
	require.Equal(t, 0, sc.code())
	sc.want("\r\x1b[K") // The line is cleared.
}
