// Command roost is the whole of Roost in one binary: the server (`roost up`) and the command
// line that talks to one.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/roosthq/roost/internal/cli"
)

// version is set by the linker.
var version = "dev"

func main() {
	servePages(os.Args)
	opts := cli.Options{
		Version: version, LocalDoctor: localDoctor,
		TemplateCommands: []*cobra.Command{templateBuildCommand()},
	}
	os.Exit(cli.Main(opts, append(testCommands(), upCommand(), uninstallCommand())...))
}
