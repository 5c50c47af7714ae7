package linalg_test
import ("testing";"os";"encoding/binary";"math";"fmt";"strings";"strconv";"time"
"github.com/loratool/loratool/internal/linalg")
func TestScratch(t *testing.T) {
 dir:=os.Getenv("SCRATCH"); if dir=="" {t.Skip()}
 n,_:=strconv.Atoi(os.Getenv("SN"))
 for _,k:=range spectra {
  raw,err:=os.ReadFile(fmt.Sprintf("%s/%s%d.f32",dir,k,n)); if err!=nil{t.Fatal(err)}
  d:=make([]float32,n*n); for i:=range d {d[i]=math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))}
  st,_:=os.ReadFile(fmt.Sprintf("%s/%s%d.s",dir,k,n)); var s []float64
  for _,l:=range strings.Fields(string(st)){v,_:=strconv.ParseFloat(l,64);s=append(s,v)}
  a:=linalg.NewMatrix(n,n,d)
  for _,rs:=range strings.Fields(os.Getenv("SR")) {
   r,_:=strconv.Atoi(rs)
   c0:=cpuSeconds(); t0:=time.Now()
   v,err:=linalg.Truncate(a,linalg.Options{Rank:r,Threads:1,Exact:os.Getenv("SX")!=""})
   c:=cpuSeconds()-c0; w:=time.Since(t0)
   if err!=nil{t.Fatal(err)}
   best:=tail(s,r)
   worst:=0.0; for i:=range v.S {worst=max(worst,math.Abs(v.S[i]-s[i])/s[i])}
   t.Logf("%s %d r=%d cpu %.3f wall %.3f steps %d conv %v exact %v excess %.2e (est %.1e) sv err %.1e captured-cons %.1e",k,n,r,c,w.Seconds(),v.Steps,v.Converged,v.Exact,v.Residual*v.Norm/best-1,v.Report.Excess,worst, v.Residual*v.Residual-(1-v.Captured))
  }
 }
}
