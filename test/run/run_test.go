package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A module whose packages end in all the ways that there are.
var module = map[string]string{
	"go.mod":             "module example.com/m\n\ngo 1.26.0\n",
	"good/good_test.go":  "package good\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"x\", func(t *testing.T) {}); t.Run(\"y\", func(t *testing.T) { t.Skip(\"no such: thing here\") }) }\nfunc TestB(*testing.T) {}\nfunc TestMute(t *testing.T) { t.SkipNow() }\n",
	"bad/bad_test.go":    "package bad\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"x\", func(t *testing.T) { t.Error(\"this is wrong\") }); t.Run(\"y\", func(t *testing.T) {}) }\nfunc TestLate(t *testing.T) { t.Run(\"fine\", func(*testing.T) {}); t.Error(\"afterwards\") }\n",
	"panic/p_test.go":    "package p\nimport \"testing\"\nfunc TestDies(t *testing.T) { panic(\"boom\") }\n",
	"exits/e_test.go":    "package e\nimport (\"os\"; \"testing\")\nfunc TestDoesNotEnd(t *testing.T) { os.Exit(7) }\n",
	"main/m_test.go":     "package m\nimport (\"fmt\"; \"os\"; \"testing\")\nfunc TestFine(*testing.T) {}\nfunc TestMain(m *testing.M) { m.Run(); fmt.Println(\"left behind: x\"); os.Exit(1) }\n",
	"broken/b_test.go":   "package b\nimport \"testing\"\nfunc TestA(t *testing.T) { undefined() }\n",
	"nothing/nothing.go": "package nothing\n",
}

func goTest(t *testing.T, packages ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range module {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"test", "-json"}, packages...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	stream, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r := newReport(&out)
	require.NoError(t, r.read(bytes.NewReader(stream)))
	r.close()
	verdict := r.verdict(err, "")
	return out.String(), verdict
}

func TestAllIsWell(t *testing.T) {
	t.Parallel()
	out, err := goTest(t, "./good", "./nothing")
	require.NoError(t, err, out)
	require.Regexp(t, `(?m)^ok   example.com/m/good, [0-9.]+ s, 2 passed, 2 skipped$`, out)
	require.Contains(t, out, "example.com/m/good TestA/y: no such: thing here\n")
	require.Contains(t, out, "example.com/m/good TestMute: NO REASON GIVEN\n")
	require.NotContains(t, out, "nothing")
	require.True(t, strings.HasSuffix(out, "\n2 passed, 0 failed, 2 skipped\n"), out)
}

func TestEachWayToFailIsToldAndCounted(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"bad":    {"FAIL TestA/x", "this is wrong", "FAIL TestLate", "afterwards", "2 passed, 2 failed, 0 skipped"},
		"panic":  {"TestDies", "panic: boom", "0 passed, 1 failed, 0 skipped"},
		"exits":  {"TestDoesNotEnd", "0 passed, 1 failed, 0 skipped"},
		"main":   {"left behind: x", "1 passed, 1 failed, 0 skipped"},
		"broken": {"undefined: undefined", "0 passed, 1 failed, 0 skipped"},
	} {
		out, err := goTest(t, "./"+name)
		require.Error(t, err, out)
		for _, text := range want {
			require.Contains(t, out, text, name)
		}
	}
}

func TestNothingRanIsAnError(t *testing.T) {
	t.Parallel()
	out, err := goTest(t, "./nothing")
	require.ErrorContains(t, err, "no test ran", out)
}

func TestARunInAVMIsAddedToTheHosts(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "total")
	add := func(in string) (string, error) {
		var out bytes.Buffer
		r := newReport(&out)
		require.NoError(t, r.read(strings.NewReader(in)))
		r.close()
		err := r.verdict(nil, file)
		return out.String(), err
	}
	host, err := add(`{"Action":"output","Package":"a","Test":"T","Output":"    a_test.go:3: needs a VM\n"}
{"Action":"skip","Package":"a","Test":"T"}
{"Action":"skip","Package":"a","Test":"Whole"}
{"Action":"skip","Package":"a","Test":"Never"}
{"Action":"pass","Package":"a","Test":"Here"}
{"Action":"pass","Package":"a"}
`)
	require.NoError(t, err)
	require.NotContains(t, host, "needs a VM")
	require.True(t, strings.HasSuffix(host, "\nthis run: passed 1, failed 0, skipped 3\n"), host)
	_, err = add(`{"Action":"pass","Package":"a","Test":"T"}
{"Action":"run","Package":"a","Test":"Whole"}
{"Action":"pass","Package":"a","Test":"Whole/x"}
{"Action":"pass","Package":"a","Test":"Whole"}
{"Action":"pass","Package":"a","Test":"Here"}
{"Action":"pass","Package":"a"}
`)
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, total(file, &out))
	require.Equal(t, "\nskipped:\n  a Never: NO REASON GIVEN\n\n3 passed, 0 failed, 1 skipped\n", out.String())
	_, err = add(`{"Action":"fail","Package":"a","Test":"Here"}
{"Action":"fail","Package":"a"}
{"Action":"fail","Package":"b"}
`)
	require.ErrorContains(t, err, "tests failed")
	out.Reset()
	require.ErrorContains(t, total(file, &out), "tests failed")
	require.Contains(t, out.String(), "\n2 passed, 2 failed, 1 skipped\n")
}

func TestSecondsAreSorted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r := newReport(&out)
	defer r.close()
	in := `not json
{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"T"}
{"Action":"pass","Package":"a","Test":"T","Elapsed":1}
{"Action":"pass","Package":"a","Elapsed":1}
{"Action":"run","Package":"b","Test":"T"}
{"Action":"pass","Package":"b","Test":"T","Elapsed":2}
{"Action":"pass","Package":"b","Elapsed":2}
{"Action":"run","Package":"c","Test":"T"}
`
	require.NoError(t, r.read(strings.NewReader(in)))
	require.ErrorContains(t, r.verdict(nil, ""), "tests failed")
	require.Contains(t, out.String(), "not json\n")
	require.Contains(t, out.String(), "FAIL c: it did not end\n  DID NOT END T\n")
	require.Regexp(t, regexp.MustCompile(`(?s)2\.0  b\n +1\.0  a\n`), out.String())
}

func TestStaleGeneratedCodeIsNamed(t *testing.T) {
	t.Parallel()
	have, want := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	write(have, "same.go", "1")
	write(want, "same.go", "1")
	write(have, "a/old.go", "1")
	write(want, "a/old.go", "2")
	write(want, "new.go", "1")
	write(have, "gone.go", "1")
	got, err := differences(have, want)
	require.NoError(t, err)
	require.Equal(t, []string{have + "/a/old.go is out of date", have + "/new.go is missing", have + "/gone.go is generated no more"}, got)
}

func TestTheProjectsGeneratedCode(t *testing.T) {
	t.Chdir("../..")
	bin, err := filepath.Abs(".cache/bin")
	require.NoError(t, err)
	if _, err := os.Stat(filepath.Join(bin, "oapi-codegen")); err != nil {
		t.Skip("the generators are not built (.cache/bin); the Makefile builds them")
	}
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("protoc is missing (Debian: protobuf-compiler)")
	}
	require.NoError(t, checkGenerated(context.Background(), bin, os.Stdout))
}
