package failpoint_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// root of the repository.
const root = "../.."

var form = regexp.MustCompile(`^[a-z0-9]+(\.[a-z0-9]+){2}$`)

// TestEveryFailpointHasATest: a step that is given a name without a test that uses it fails here.
// The real binary is killed at each of the state machine's, which are written out there; the
// others are used by the real binary's tests or their package's.
func TestEveryFailpointHasATest(t *testing.T) {
	t.Parallel()
	names := failpoints(t)
	require.Greater(t, len(names), 15)
	e2e := tests(t, "test/e2e")
	killed, err := os.ReadFile(filepath.Join(root, "test/e2e/crash_test.go"))
	require.NoError(t, err)
	for name, dir := range names {
		require.Regexp(t, form, name, "PACKAGE.OPERATION.STEP")
		where, what := e2e+tests(t, dir), name
		if strings.HasPrefix(name, "sandbox.") {
			where, what = string(killed), strconv.Quote(name)
		}
		assert.True(t, strings.Contains(where, what), "failpoint %s of %s is used by no test", name, dir)
	}
}

// failpoints are the names in the non-test sources, each with its package's directory.
func failpoints(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	each(t, "internal", func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !isHit(call.Fun) {
				return true
			}
			arg, ok := call.Args[0].(*ast.BasicLit)
			require.True(t, ok, "%s: a failpoint's name must be written out", path)
			name, err := strconv.Unquote(arg.Value)
			require.NoError(t, err)
			dir, err := filepath.Rel(root, filepath.Dir(path))
			require.NoError(t, err)
			found[name] = dir
			return true
		})
	})
	return found
}

func isHit(fun ast.Expr) bool {
	sel, ok := fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Hit" {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "failpoint"
}

// tests is the text of a directory's tests.
func tests(t *testing.T, dir string) string {
	t.Helper()
	var text strings.Builder
	each(t, dir, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			raw, err := os.ReadFile(path)
			require.NoError(t, err)
			text.Write(raw)
		}
	})
	return text.String()
}

func each(t *testing.T, dir string, f func(path string)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.HasSuffix(path, ".go") {
			f(path)
		}
		return err
	}))
}
