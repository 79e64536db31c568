// Command bench measures what Croft promises beside its peers, on this machine, in one run: `make bench`. A peer that is
// not installed is skipped with a note (`make bench-peers` installs it). It exits 0 whatever the figures are: they are
// judged by the reader, who knows what else the machine was doing.
//
// A figure is a row, and rows are made by the functions that registry.go lists, one file an area.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/engine/oci"
	"github.com/croftproject/croft/internal/engine/uml"
	"github.com/croftproject/croft/internal/image/unpack"
	"github.com/croftproject/croft/internal/keeper"
)

func init() { runtime.LockOSThread() } // as in cmd/croft: the fake daemon is this program

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case fakeDaemonCommand:
			outcome(fakeDaemon(os.Args[2:]))
		case insideCommand:
			outcome(runInside(os.Args[2:]))
		case "keeper":
			outcome(keeperMain(os.Args[2:]))
		case unpack.Command:
			os.Exit(unpack.Main(os.Args[2:]))
		case oci.AttendCommand:
			os.Exit(oci.Attend(os.Args[2:]))
		case uml.ConfineCommand:
			outcome(uml.Confine(os.Args[2:]))
		}
	}
	outcome(run())
}

func outcome(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// keeperMain is the keeper of the fake daemon.
func keeperMain(args []string) error {
	f := flag.NewFlagSet("keeper", flag.ContinueOnError)
	dir := f.String("dir", "", "directory of the keeper")
	if err := f.Parse(args); err != nil {
		return err
	}
	return keeper.Run(context.Background(), *dir)
}

func run() error {
	var o options
	var only, out string
	flag.StringVar(&out, "o", "", "file to write the rows to, as JSON")
	flag.StringVar(&only, "only", "", "rows to measure, by name or pattern: os/create,uml/*")
	flag.StringVar(&o.Binary, "croft", "build/croft", "the program")
	flag.StringVar(&o.Cache, "cache", "build/bench-cache", "where what was downloaded for images is kept between runs")
	flag.IntVar(&o.Rounds, "rounds", 15, "how often short acts are timed; long ones less")
	list := flag.Bool("list", false, "name the rows, and measure nothing")
	flag.Parse()
	chosen, err := choose(registry, only)
	if err != nil {
		return err
	}
	if *list {
		for _, b := range chosen {
			fmt.Println(strings.Join(b.Rows, "\n"))
		}
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root: it runs daemons and guests")
	}
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	rows, err := measure(ctx, newLab(o), chosen)
	printTable(os.Stdout, rows)
	fmt.Printf("\n%s, %d CPUs, load average %s\n", time.Now().UTC().Format(time.DateTime), runtime.NumCPU(), loadAverage())
	if out != "" && len(rows) > 0 {
		err = errors.Join(err, writeRows(out, rows))
	}
	return err
}

// measure runs the benches one by one, so that none disturbs another. One that fails makes its rows say so.
func measure(ctx context.Context, l *lab, chosen []bench) (rows []Row, err error) {
	defer func() { err = errors.Join(err, l.close()) }()
	for _, b := range chosen {
		if ctx.Err() != nil {
			return rows, ctx.Err()
		}
		began := time.Now()
		l.say("%s: measuring (load %s)", strings.Join(b.Rows, ", "), loadAverage())
		got, err := b.Run(ctx, l)
		if err != nil {
			l.say("%s: %v", b.Rows[0], err)
			got = nil
			for _, name := range b.Rows {
				got = append(got, Row{Name: name, Note: "not measured: " + err.Error()})
			}
		}
		for _, r := range got {
			l.say("%s", r)
		}
		l.say("%s: took %s", b.Rows[0], time.Since(began).Round(100*time.Millisecond))
		rows = append(rows, got...)
	}
	return rows, nil
}

func writeRows(path string, rows []Row) error {
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// loadAverage of the last 1, 5 and 15 minutes (proc(5)).
func loadAverage() string {
	data, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(data))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
