package server

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pattern is size bytes that differ from place to place.
func pattern(size int64) io.Reader {
	return io.LimitReader(&counter{}, size)
}

type counter struct{ n uint32 }

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		c.n++
		p[i] = byte(c.n ^ c.n>>8 ^ c.n>>16)
	}
	return len(p), nil
}

func digest(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	_, err := io.Copy(h, r)
	require.NoError(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

func TestFileOfManyMegabytesBothWays(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	const size = 64 << 20
	res, body := g.do("POST", "/files?path=deep/er/big.bin&mode=0750", pattern(size), "Content-Type", "application/octet-stream")
	require.Equal(t, http.StatusOK, res.StatusCode, body)
	path := g.home + "/deep/er/big.bin"
	require.JSONEq(t, `[{"path":"`+path+`","name":"big.bin","type":"file"}]`, body)
	for _, p := range []string{path, g.home + "/deep", g.home + "/deep/er"} {
		info, err := os.Stat(p)
		require.NoError(t, err)
		require.EqualValues(t, testUID, info.Sys().(*syscall.Stat_t).Uid, p)
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o750), info.Mode())

	req, err := http.NewRequestWithContext(t.Context(), "GET", g.url+"/files?path=~/deep/er/big.bin", nil)
	require.NoError(t, err)
	req.Header.Set("X-Access-Token", accessToken)
	got, err := g.http.Do(req)
	require.NoError(t, err)
	defer func() { _ = got.Body.Close() }()
	require.EqualValues(t, size, got.ContentLength)
	require.Equal(t, digest(t, pattern(size)), digest(t, got.Body))
}

func TestFileRangeOverwriteAndErrors(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	res, body := g.do("POST", "/files?path=a.txt", bytes.NewReader([]byte("0123456789")))
	require.Equal(t, 200, res.StatusCode, body)
	res, body = g.do("GET", "/files?path=a.txt", nil, "Range", "bytes=2-4")
	require.Equal(t, http.StatusPartialContent, res.StatusCode)
	require.Equal(t, "234", body)

	require.NoError(t, os.Chmod(g.home+"/a.txt", 0o600))
	require.NoError(t, os.Symlink("a.txt", g.home+"/link"))
	res, _ = g.do("POST", "/files?path=link", bytes.NewReader(nil))
	require.Equal(t, 200, res.StatusCode)
	info, err := os.Lstat(g.home + "/a.txt")
	require.NoError(t, err)
	require.Zero(t, info.Size())
	require.Equal(t, os.FileMode(0o600), info.Mode(), "an overwritten file keeps its mode")
	res, body = g.do("GET", "/files?path=a.txt", nil)
	require.Equal(t, "0", res.Header.Get("Content-Length"))
	require.Empty(t, body)

	for path, status := range map[string]int{
		"/files?path=missing": 404, "/files?path=.": 400, "/files": 400, "/files?path=a%00b": 400,
		"/files?path=a.txt&username=nobody-here": 401, "/files?path=/dev/zero": 400,
	} {
		res, body = g.do("GET", path, nil)
		require.Equal(t, status, res.StatusCode, path)
		require.Contains(t, body, fmt.Sprintf(`"code":%d`, status))
	}
	res, body = g.do("GET", "/files?path=/proc/version", nil)
	require.Equal(t, 200, res.StatusCode)
	require.Contains(t, body, "Linux")
	res, _ = g.do("POST", "/files?path=a.txt/b", bytes.NewReader(nil))
	require.Equal(t, 400, res.StatusCode)
}

func TestMultipartKeepsDirectories(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	for _, name := range []string{"one.txt", "sub/two.txt"} {
		part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="` + name + `"`}})
		require.NoError(t, err)
		_, _ = part.Write([]byte(name))
	}
	require.NoError(t, w.Close())
	res, body := g.do("POST", "/files", &form, "Content-Type", w.FormDataContentType())
	require.Equal(t, 200, res.StatusCode, body)
	data, err := os.ReadFile(g.home + "/sub/two.txt")
	require.NoError(t, err)
	require.Equal(t, "sub/two.txt", string(data))
}

// An upload whose client goes away leaves the old file and nothing else.
func TestBrokenUploadLeavesNothing(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	require.NoError(t, os.WriteFile(g.home+"/kept", []byte("old"), 0o644))
	body := io.MultiReader(pattern(1<<20), brokenReader{})
	req, err := http.NewRequestWithContext(t.Context(), "POST", g.url+"/files?path=kept", body)
	require.NoError(t, err)
	req.Header.Set("X-Access-Token", accessToken)
	res, err := g.http.Do(req)
	if err == nil {
		_ = res.Body.Close()
	}
	require.Error(t, err)
	require.Eventually(t, func() bool {
		entries, err := os.ReadDir(g.home)
		return err == nil && len(entries) == 1
	}, 30*time.Second, 5*time.Millisecond)
	data, err := os.ReadFile(g.home + "/kept")
	require.NoError(t, err)
	require.Equal(t, "old", string(data))
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("client is gone") }

func TestArchiveThereAndBack(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	src := g.home + "/src"
	require.NoError(t, os.MkdirAll(src+"/sub/empty", 0o755))
	require.NoError(t, os.WriteFile(src+"/run.sh", []byte("#!/bin/sh\n"), 0o755))
	require.NoError(t, os.WriteFile(src+"/sub/data", bytes.Repeat([]byte("d"), 100000), 0o640))
	require.NoError(t, os.Symlink("../run.sh", src+"/sub/link"))
	res, packed := g.do("GET", "/archive?path=src", nil)
	require.Equal(t, 200, res.StatusCode)
	res, body := g.do("PUT", "/archive?path=copies/dst", bytes.NewReader([]byte(packed)))
	require.Equal(t, http.StatusNoContent, res.StatusCode, body)
	for name, mode := range map[string]os.FileMode{
		"run.sh": 0o755, "sub/data": 0o640, "sub": os.ModeDir | 0o755, "sub/empty": os.ModeDir | 0o755, "sub/link": os.ModeSymlink | 0o777,
	} {
		info, err := os.Lstat(filepath.Join(g.home, "copies/dst", name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
		require.EqualValues(t, testUID, info.Sys().(*syscall.Stat_t).Uid, name)
	}
	target, err := os.Readlink(g.home + "/copies/dst/sub/link")
	require.NoError(t, err)
	require.Equal(t, "../run.sh", target)

	res, packed = g.do("GET", "/archive?path=src/run.sh", nil)
	require.Equal(t, 200, res.StatusCode)
	header, err := tar.NewReader(bytes.NewReader([]byte(packed))).Next()
	require.NoError(t, err)
	require.Equal(t, "run.sh", header.Name)
	res, _ = g.do("GET", "/archive?path=nowhere", nil)
	require.Equal(t, 404, res.StatusCode)
}

func tarOf(t *testing.T, headers ...*tar.Header) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		require.NoError(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, _ = w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
		}
	}
	require.NoError(t, w.Close())
	return &out
}

func TestArchiveCannotLeaveItsFolder(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	outside := g.home + "/outside"
	require.NoError(t, os.Mkdir(outside, 0o755))
	require.NoError(t, os.MkdirAll(g.home+"/into", 0o755))
	require.NoError(t, os.Symlink(outside, g.home+"/into/already"))
	file := func(name string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}
	}
	for name, entries := range map[string][]*tar.Header{
		"dot dot":         {file("../outside/x")},
		"inner dot dot":   {file("a/../../outside/x")},
		"absolute":        {file(outside + "/x")},
		"own symlink":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, file("l/x")},
		"old symlink":     {file("already/x")},
		"hard link":       {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../outside/x"}},
		"link by symlink": {{Name: "h", Typeflag: tar.TypeLink, Linkname: "already/secret"}},
		"device":          {{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"folder over it":  {{Name: "already", Typeflag: tar.TypeDir, Mode: 0o777}},
	} {
		require.NoError(t, os.WriteFile(outside+"/secret", []byte("s"), 0o600))
		res, body := g.do("PUT", "/archive?path=into", tarOf(t, entries...))
		require.Equal(t, http.StatusBadRequest, res.StatusCode, "%s: %s", name, body)
		entries, err := os.ReadDir(outside)
		require.NoError(t, err)
		require.Len(t, entries, 1, name)
		info, err := os.Stat(outside)
		require.NoError(t, err)
		require.Equal(t, os.ModeDir|0o755, info.Mode(), name)
	}
	// A file over a symlink replaces the link, and does not write through it.
	require.NoError(t, os.Symlink(outside+"/secret", g.home+"/into/f"))
	res, body := g.do("PUT", "/archive?path=into", tarOf(t, file("f")))
	require.Equal(t, http.StatusNoContent, res.StatusCode, body)
	data, err := os.ReadFile(outside + "/secret")
	require.NoError(t, err)
	require.Equal(t, "s", string(data))
}
