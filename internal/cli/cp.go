package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

type cpFlags struct {
	user  string
	quiet bool
}

func (a *app) cpCommand() *cobra.Command {
	var f cpFlags
	cmd := &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files and folders between here and a sandbox",
		Long: `Copy a file or a folder between here and a sandbox; exactly one side is ID:PATH. A path in the
sandbox is absolute or relative to the user's home. A local path with a colon needs ./ before it.

A file goes to DST, or into it when DST is a folder or ends in a slash.
A folder becomes DST, or DST/NAME when DST is a folder already; SRC/. copies its contents into DST.
Symlinks inside a folder are kept as they are, SRC itself is followed. Permission bits are kept,
owners and set-id bits are not; devices, sockets and pipes are left out with a warning.
"-" is stdin or stdout, for single files.

A local file appears whole or not at all. An archive from a sandbox cannot write outside DST.`,
		Example: `  roost cp main.py $id:
  roost cp ./project $id:/home/user/
  roost cp $id:/var/log/app.log .
  roost cp $id:out/. ./results
  curl -s https://example.com/data | roost cp - $id:/tmp/data
  roost cp $id:/etc/os-release - | grep NAME`,
		Args: takes("SRC", "DST"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		job, err := a.parseCopy(args, f)
		if err != nil {
			return usage(cmd, "%s", err.Error())
		}
		return a.run(func(ctx context.Context, c *client, _ []string) error {
			job.c = c
			return job.run(ctx)
		})(cmd, args)
	}
	cmd.Flags().StringVar(&f.user, "user", "", "whose rights and home in the sandbox")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "no progress on stderr")
	return cmd
}

// place is one side of a copy. ID is empty for the local side.
type place struct{ id, path string }

func (p place) String() string {
	if p.id == "" {
		return p.path
	}
	return p.id + ":" + p.path
}

// into tells whether the path names a folder by its spelling.
func (p place) into() bool { return p.path == "" || strings.HasSuffix(p.path, "/") }

// contents tells whether the path ends in "/.", which means what is in the folder.
func (p place) contents() bool { return p.path == "." || strings.HasSuffix(p.path, "/.") }

// stdio tells whether the local side is a pipe.
func (p place) stdio() bool { return p.id == "" && p.path == "-" }

func parsePlace(text string) place {
	id, path, found := strings.Cut(text, ":")
	if !found || id == "" || strings.ContainsAny(id, "/.") {
		return place{path: text}
	}
	return place{id: id, path: path}
}

// copyJob is one run of cp.
type copyJob struct {
	c        *client
	src, dst place
	user     *string
	json     bool
	meter    *meter
	files    int
}

func (a *app) parseCopy(args []string, f cpFlags) (*copyJob, error) {
	src, dst := parsePlace(args[0]), parsePlace(args[1])
	if (src.id == "") == (dst.id == "") {
		return nil, fmt.Errorf("exactly one of %q and %q must be ID:PATH", args[0], args[1])
	}
	if err := checkID(src.id + dst.id); err != nil {
		return nil, err
	}
	for _, side := range []*place{&src, &dst} {
		if side.id == "" && side.path == "" {
			return nil, fmt.Errorf("a local path is empty")
		}
	}
	if src.id != "" && src.path == "" {
		return nil, fmt.Errorf("%s names no file", src)
	}
	quiet := f.quiet || !isTerminal(os.Stderr) || (dst.stdio() && isTerminal(os.Stdout))
	return &copyJob{src: src, dst: dst, user: nonEmpty(f.user), json: a.json, meter: &meter{quiet: quiet}}, nil
}

// copied is the JSON document of cp.
type copied struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Files       int    `json:"files"`
	Bytes       int64  `json:"bytes"`
}

func (j *copyJob) run(ctx context.Context) error {
	var err error
	if j.dst.id != "" {
		err = j.upload(ctx)
	} else {
		err = j.download(ctx)
	}
	j.meter.finish()
	if err != nil {
		return on(j.src.String()+" "+j.dst.String(), err)
	}
	if !j.json {
		return nil
	}
	out := os.Stdout
	if j.dst.stdio() {
		out = os.Stderr // stdout is the file.
	}
	return printJSON(out, copied{j.src.String(), j.dst.String(), j.files, j.meter.total()})
}

// leftOut warns about what cp does not copy.
func (j *copyJob) leftOut(name, what string) {
	j.meter.clear()
	_, _ = fmt.Fprintf(os.Stderr, "roost: cp: left out %s: %s\n", printable(name), what)
}
